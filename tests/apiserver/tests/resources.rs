//! The definitions and manifests as the API server takes them.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use warren_k8s::{Enforcement, Mesh, MeshSpec};
use warren_tests_apiserver::{Cluster, crds, manifests};

#[tokio::test]
async fn every_manifest_is_one_that_the_server_knows_every_field_of() {
    let cluster = Cluster::shared().await;
    for object in crds().iter().chain(&manifests()) {
        let kind = &object.types.as_ref().expect("a kind").kind;
        let taken = cluster.apply_dry(object).await;
        assert!(taken.is_ok(), "{kind}: {}", taken.expect_err("refused"));
    }
}

#[tokio::test]
async fn an_empty_mesh_is_one_with_the_defaults() {
    let cluster = Cluster::shared().await;
    let mesh = dry(&cluster, "default", json!({})).await.expect("a mesh");
    assert_eq!(mesh.spec, MeshSpec::default());
    assert_eq!(mesh.spec.enforcement, Enforcement::Staged);
}

#[tokio::test]
async fn there_is_one_mesh_and_it_is_called_default() {
    let cluster = Cluster::shared().await;
    refused(&cluster, "another", json!({}), "it is called default").await;
}

#[tokio::test]
async fn a_mesh_that_cannot_work_is_refused_with_a_sentence() {
    let cluster = Cluster::shared().await;
    let prefixes = |prefixes: Value| json!({"podPrefixes": prefixes});
    for (spec, words) in [
        (
            prefixes(json!(["10.244.0.0/16", "10.244.7.0/24"])),
            "must not overlap",
        ),
        (
            prefixes(json!(["fd00::/48", "fd00::/64"])),
            "must not overlap",
        ),
        (
            prefixes(json!(["10.244.0.0/16", "10.244.0.0/16"])),
            "Duplicate value",
        ),
        (prefixes(json!(["10.244.0.1/16"])), "without host bits"),
        (prefixes(json!(["FD00::/48"])), "without host bits"),
        (prefixes(json!(["10.244.0.0"])), "without host bits"),
        (prefixes(json!(["0.0.0.0/0"])), "length zero"),
        (prefixes(json!(["::/0"])), "length zero"),
        (json!({"enforcement": "Strict"}), "Strict needs podPrefixes"),
        (json!({"enforcement": "Sometimes"}), "Unsupported value"),
        (json!({"mode": "Tunnel"}), "Unsupported value"),
        (
            json!({"overlayPorts": [8472, 51820]}),
            "cannot be that of the CNI's tunnel",
        ),
        (json!({"overlayPorts": []}), "should have at least 1 items"),
        (json!({"table": 254}), "the system's tables"),
        (json!({"port": 0}), "greater than or equal to 1"),
        (json!({"mtu": 500}), "greater than or equal to 576"),
        (json!({"fwmark": 0}), "greater than or equal to 1"),
        (json!({"interface": "a/b"}), "should match"),
        (
            json!({"rulePriorities": {"route": 40000}}),
            "less than or equal to 32764",
        ),
        (
            json!({"allowedEndpointCIDRs": ["192.0.2.1/24"]}),
            "without host bits",
        ),
        (
            json!({"exceptions": {"labels": ["example.org/mine"]}}),
            "should match",
        ),
    ] {
        refused(&cluster, "default", spec, words).await;
    }
}

#[tokio::test]
async fn a_mesh_of_both_families_with_everything_set_is_taken() {
    let cluster = Cluster::shared().await;
    let spec = json!({
        "port": 51830,
        "interface": "warren1",
        "fwmark": 4_294_967_295_u32,
        "table": 4_294_967_295_u32,
        "rulePriorities": {"route": 200, "overlay": 300},
        "mtu": 1380,
        "keepaliveSeconds": 25,
        "mode": "Route",
        "overlayPorts": [4790],
        "podPrefixes": ["10.244.0.0/16", "fd00:10:244::/56"],
        "enforcement": "Strict",
        "exceptions": {"nodes": ["old"], "labels": ["node-restriction.kubernetes.io/no-mesh"]},
        "allowedEndpointCIDRs": ["203.0.113.0/24", "2001:db8::/64"],
    });
    let mesh = dry(&cluster, "default", spec.clone())
        .await
        .expect("a mesh");
    assert_eq!(serde_json::to_value(&mesh.spec).expect("JSON"), spec);
}

#[tokio::test]
async fn a_record_that_is_none_is_refused_with_a_sentence() {
    let cluster = Cluster::shared().await;
    cluster.node("sound", &[]).await;
    let daemon = cluster.daemon("sound").await;
    let whole = daemon.record();
    for (field, value, words) in [
        (
            "publicKey",
            json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            "a key of zeros",
        ),
        ("publicKey", json!("short"), "should match"),
        // 44 characters whose last bits no encoder would write.
        (
            "publicKey",
            json!("TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX1="),
            "should match",
        ),
        ("endpoints", json!(["node.example.org"]), "an IP address"),
        ("endpoints", json!(["192.0.2.1:51820"]), "an IP address"),
        ("port", json!(0), "greater than or equal to 1"),
        ("port", json!(65536), "less than or equal to 65535"),
        ("mode", json!("Tunnel"), "Unsupported value"),
        ("epoch", json!(-1), "greater than or equal to 0"),
        ("version", json!("v".repeat(65)), "Too long"),
    ] {
        let mut record = whole.clone();
        record["spec"][field] = value;
        let error = daemon.apply(&record).await.expect_err("it is none");
        assert!(error.to_string().contains(words), "{field}: {error}");
    }
    let written = daemon.apply(&whole).await.expect("its own");
    assert_eq!(written.status, None);
}

#[tokio::test]
async fn kubectl_get_shows_key_endpoint_peers_enforcement_and_age() {
    let cluster = Cluster::shared().await;
    cluster.node("shown", &[]).await;
    let daemon = cluster.daemon("shown").await;
    daemon.apply(&daemon.record()).await.expect("its own");
    let status = json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": "shown"},
        "status": {"peersReady": 3, "peersExpected": 4, "enforcement": "Strict"},
    });
    let by = PatchParams::apply("warrend");
    let written = daemon
        .records()
        .patch_status("shown", &by, &Patch::Apply(&status))
        .await;
    written.expect("its own");

    let request = http::Request::get("/apis/mesh.warren.dev/v1alpha1/meshnodes/shown")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .expect("a request");
    let table: Value = cluster.admin.request(request).await.expect("a table");
    let names: Vec<&str> = (table["columnDefinitions"].as_array().into_iter().flatten())
        .filter(|column| column["priority"] == 0)
        .filter_map(|column| column["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "Name",
            "Key",
            "Endpoint",
            "Ready",
            "Expected",
            "Enforcement",
            "Age"
        ]
    );
    let cells = table["rows"][0]["cells"].as_array().expect("one row");
    let key = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
    assert_eq!(
        cells[..6],
        [
            json!("shown"),
            json!(key),
            json!("192.0.2.1"),
            json!(3),
            json!(4),
            json!("Strict")
        ]
    );
}

#[tokio::test]
async fn the_resources_have_short_names_and_a_category() {
    let cluster = Cluster::shared().await;
    let request = http::Request::get("/apis/mesh.warren.dev/v1alpha1").body(Vec::new());
    let list: Value = cluster
        .admin
        .request(request.expect("a request"))
        .await
        .expect("a list");
    let resource = |name: &str| {
        let all = list["resources"].as_array().expect("resources");
        all.iter()
            .find(|resource| resource["name"] == name)
            .expect("it is served")
            .clone()
    };
    for (name, short) in [("meshes", "mesh"), ("meshnodes", "mn")] {
        let resource = resource(name);
        assert_eq!(resource["categories"], json!(["warren"]));
        assert_eq!(resource["shortNames"], json!([short]));
        assert_eq!(resource["namespaced"], json!(false));
    }
}

/// What the server would make of a mesh.
async fn dry(cluster: &Cluster, name: &str, spec: Value) -> kube::Result<Mesh> {
    // As JSON: what Rust would fill in is what the server is to fill in.
    let object = json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "Mesh",
        "metadata": {"name": name},
        "spec": spec,
    });
    let request = http::Request::post("/apis/mesh.warren.dev/v1alpha1/meshes?dryRun=All")
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes());
    cluster.admin.request(request.expect("a request")).await
}

async fn refused(cluster: &Cluster, name: &str, spec: Value, words: &str) {
    let shown = spec.to_string();
    let error = dry(cluster, name, spec).await.expect_err(&shown);
    assert!(error.to_string().contains(words), "{shown}: {error}");
}

//! The Helm chart: what it renders is what the plain manifests say, the API server takes it, and values
//! that cannot work are refused with a sentence.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use warren_k8s::{Enforcement, Mesh, NODE_UNREADY, STARTING};
use warren_tests_apiserver::{
    Cluster, Daemon, NAMESPACE, Options, Server, crds, deploy, eventually, is_forbidden, manifests,
    object,
};
use warren_tests_lab::built;

/// Values that people set, each with all else as it is.
const SETS: &[&[&str]] = &[
    &[],
    &["mesh.create=false", "uninstall.clean=false"],
    &[
        "mesh.spec.enforcement=Strict",
        "mesh.spec.podPrefixes={10.244.0.0/16,fd00:10:244::/48}",
        "mesh.spec.mode=Overlay",
        "mesh.spec.port=51821",
        "mesh.spec.mtu=1340",
        "mesh.spec.exceptions.nodes={nas}",
    ],
    &[
        "http.address=[$(HOST_IP)]:9587",
        "workers=4",
        "log=info\\,warren_engine=debug",
        "api.host=192.0.2.1",
        "api.port=6443",
        "state.hostPath=/srv/warren",
        "hostUnit.enabled=true",
        "security.sysNice=true",
        "security.seLinuxType=spc_t",
        "maxUnavailable=10%",
        "image.repository=mirror/warren",
        "image.tag=0.1.0-1",
        "imagePullSecrets[0].name=pull",
        "nodeSelector.pool=edge",
        "podLabels.team=net",
        "podAnnotations.a=b",
    ],
    &["mesh.spec.enforcement=Strict", "mesh.spec.mode=Overlay"],
    &["security.privileged=true", "http.address=[::1]:9586"],
    &[
        "startupTaint.enabled=true",
        "startupTaint.nodeSelector.role=control",
        "api.port=6443",
    ],
];

#[test]
fn the_chart_has_nothing_to_complain_of() {
    let output = helm(&["lint", "--strict", "."]);
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test]
async fn the_api_server_takes_what_the_chart_renders() {
    let cluster = Cluster::shared().await;
    for namespace in [NAMESPACE, "elsewhere"] {
        let made =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        cluster.apply(&object(made)).await.expect("a namespace");
        for set in SETS {
            for object in rendered(namespace, set) {
                let kind = object.types.as_ref().expect("a kind").kind.clone();
                let taken = cluster.apply_dry(&object).await;
                assert!(taken.is_ok(), "{set:?}: {kind}: {taken:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_api_server_takes_the_pod_of_the_daemon() {
    let cluster = Cluster::shared().await;
    for set in SETS {
        let template = &daemon_set(set)["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "of-the-daemon-set", "namespace": NAMESPACE},
        });
        pod["spec"] = template["spec"].clone();
        let taken = cluster.apply_dry(&object(pod)).await;
        assert!(taken.is_ok(), "{set:?}: {taken:?}");
    }
}

#[test]
fn the_daemon_has_one_capability_and_no_more_of_the_host_than_it_needs() {
    let pod = &daemon_set(&[])["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["dnsPolicy"], "Default");
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(
        pod["securityContext"],
        json!({"seccompProfile": {"type": "RuntimeDefault"}})
    );
    for absent in ["hostPID", "hostIPC", "initContainers"] {
        assert!(pod.get(absent).is_none(), "{absent}");
    }

    let containers = pod["containers"].as_array().expect("containers");
    let [container] = &containers[..] else {
        panic!("{containers:?}");
    };
    assert!(container.get("ports").is_none(), "hostNetwork takes each");
    assert_eq!(
        container["securityContext"],
        json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "readOnlyRootFilesystem": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        })
    );
    assert!(container["resources"]["requests"]["cpu"].is_string());
    assert!(container["resources"]["limits"]["memory"].is_string());
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["host"], "127.0.0.1", "{probe}");
        assert_eq!(get["port"], 9586, "{probe}");
    }

    let volumes = pod["volumes"].as_array().expect("volumes");
    let host: Vec<(&str, &str)> = (volumes.iter())
        .filter_map(|volume| {
            let of_host = volume.get("hostPath")?;
            Some((of_host["path"].as_str()?, of_host["type"].as_str()?))
        })
        .collect();
    assert_eq!(
        host,
        [
            ("/dev/net/tun", "CharDevice"),
            ("/var/lib/warren", "DirectoryOrCreate"),
            ("/run/warren", "DirectoryOrCreate"),
            ("/etc/machine-id", "File"),
        ]
    );
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    for mount in mounts {
        let read_only = mount["readOnly"] == true;
        let name = mount["name"].as_str().expect("a name");
        assert_eq!(read_only, ["machine-id", "token"].contains(&name), "{name}");
    }
    let token = (volumes.iter())
        .find(|volume| volume["name"] == "token")
        .expect("a token");
    assert_eq!(
        token["projected"]["sources"][0]["serviceAccountToken"],
        json!({"path": "token", "expirationSeconds": 3600})
    );
}

#[test]
fn what_is_optional_is_asked_for() {
    let container = |set: &[&str]| {
        let pod = daemon_set(set)["spec"]["template"]["spec"].clone();
        (pod["containers"][0].clone(), pod)
    };
    let (nice, _) = container(&["security.sysNice=true"]);
    assert_eq!(
        nice["securityContext"]["capabilities"]["add"],
        json!(["NET_ADMIN", "SYS_NICE"])
    );
    let (_, typed) = container(&["security.seLinuxType=spc_t"]);
    assert_eq!(typed["securityContext"]["seLinuxOptions"]["type"], "spc_t");
    let (privileged, _) = container(&["security.privileged=true"]);
    assert_eq!(privileged["securityContext"]["privileged"], true);
    assert!(privileged["securityContext"].get("capabilities").is_none());
    // A Prometheus server reaches the address of the node, and so does the kubelet.
    let (reachable, _) = container(&["http.address=$(HOST_IP):9600"]);
    let probe = &reachable["readinessProbe"]["httpGet"];
    assert!(probe.get("host").is_none(), "{probe}");
    assert_eq!(probe["port"], 9600);
    let (unit, _) = container(&["hostUnit.enabled=true"]);
    let mounts = unit["volumeMounts"].as_array().expect("mounts").clone();
    let units = json!({"name": "units", "mountPath": "/etc/systemd/system", "readOnly": true});
    assert!(mounts.contains(&units), "{mounts:?}");
}

#[test]
fn plain_manifests_and_chart_say_the_same() {
    let output = Command::new(chart().join("plain"))
        .output()
        .expect("a script");
    let made = String::from_utf8(output.stdout).expect("text");
    let file = deploy().join("daemonset.yaml");
    let written = std::fs::read_to_string(&file).expect("it is in the checkout");
    assert!(
        made == written,
        "{} is stale: deploy/chart/plain > deploy/kubernetes/daemonset.yaml",
        file.display()
    );

    let kept = |objects: Vec<DynamicObject>| {
        let mut kept: Vec<String> = (objects.iter())
            .filter(|object| {
                let kind = &object.types.as_ref().expect("a kind").kind;
                // The namespace is the release's, and the mesh the operator's.
                !["Namespace", "Mesh"].contains(&kind.as_str()) && !is_hook(object)
            })
            .map(|object| serde_json::to_string(object).expect("plain data"))
            .collect();
        kept.sort();
        kept
    };
    assert_eq!(kept(rendered(NAMESPACE, &[])), kept(manifests()));
    let definitions = helm(&["show", "crds", "."]);
    let mut definitions = objects(&definitions.stdout);
    definitions.sort_by_key(kube::ResourceExt::name_any);
    assert_eq!(definitions, crds());
}

#[test]
fn in_another_namespace_nothing_speaks_of_the_usual_one() {
    let output = template("elsewhere", &[], &["--include-crds"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("system:serviceaccount:elsewhere:warrend"));
    assert!(!text.contains(NAMESPACE), "{NAMESPACE} is in it");
}

#[test]
fn the_hook_before_deletion_may_write_the_mesh_and_nothing_else() {
    let hooks: Vec<DynamicObject> = (rendered(NAMESPACE, &[]).into_iter())
        .filter(is_hook)
        .collect();
    let mut kinds: Vec<&str> = (hooks.iter())
        .map(|hook| hook.types.as_ref().expect("a kind").kind.as_str())
        .collect();
    kinds.sort_unstable();
    let expected = ["ClusterRole", "ClusterRoleBinding", "Job", "ServiceAccount"];
    assert_eq!(kinds, expected);
    let role = (hooks.iter())
        .find(|hook| {
            hook.types
                .as_ref()
                .is_some_and(|it| it.kind == "ClusterRole")
        })
        .expect("a role");
    let rules = role.data["rules"].as_array().expect("rules");
    assert_eq!(
        rules,
        &[
            json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}),
            json!({"apiGroups": ["mesh.warren.dev"], "resources": ["meshnodes"], "verbs": ["list"]}),
            json!({
                "apiGroups": ["mesh.warren.dev"],
                "resources": ["meshes"],
                "resourceNames": ["default"],
                "verbs": ["get", "patch"],
            }),
        ]
    );
}

#[tokio::test]
async fn the_hook_waits_until_every_daemon_has_removed_what_it_made() {
    let cluster = Cluster::shared().await;
    for hook in rendered(NAMESPACE, &[]).iter().filter(|it| is_hook(it)) {
        if hook.types.as_ref().is_some_and(|types| types.kind != "Job") {
            cluster.apply(hook).await.expect("rights of the hook");
        }
    }
    let (token, kubeconfig) = account(&cluster, "warren-remove").await;
    let warren = |arguments: &[&str]| warren(arguments, &kubeconfig);

    let nothing = warren(&["remove"]).output().expect("warren");
    assert!(nothing.status.success(), "{}", said(&nothing));
    assert!(
        said(&nothing).contains("no daemon has one in force"),
        "{}",
        said(&nothing)
    );

    let mesh = json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "Mesh",
        "metadata": {"name": "default"},
        "spec": {"podPrefixes": ["10.244.0.0/16"]},
    });
    cluster.apply(&object(mesh)).await.expect("a Mesh");
    let ready = joined(&cluster, "hook-ready", true).await;
    joined(&cluster, "hook-away", false).await;
    report(&ready, "Strict").await;
    let status = warren(&["status"]).output().expect("warren");
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success(), "{told}{}", said(&status));
    for line in [
        "hook-ready  TrMvSoP4  192.0.2.1:51820",
        "  Strict  ",
        "  Node not Ready\n",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }

    let mut waiting = warren(&["remove", "--timeout", "60"])
        .spawn()
        .expect("warren");
    let meshes: Api<Mesh> = Api::all(cluster.admin.clone());
    eventually("the Mesh says so", || async {
        let mesh = meshes.get("default").await.expect("it is there");
        assert_eq!(mesh.spec.pod_prefixes, ["10.244.0.0/16"]);
        mesh.spec.enforcement == Enforcement::Removed
    })
    .await;
    assert!(waiting.try_wait().expect("a child").is_none(), "it waits");
    report(&ready, "Removed").await;
    let done = waiting.wait_with_output().expect("warren");
    assert!(done.status.success(), "{}", said(&done));
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        told.contains("hook-ready: interface, routes and rules are gone"),
        "{told}"
    );
    assert!(
        said(&done).contains("hook-away: its Node is not Ready"),
        "{}",
        said(&done)
    );

    report(&ready, "Strict").await;
    let late = warren(&["remove", "--timeout", "1"])
        .output()
        .expect("warren");
    assert_eq!(late.status.code(), Some(1));
    assert!(
        said(&late).contains("hook-ready; is warrend running"),
        "{}",
        said(&late)
    );

    let stranger = cluster.server.client(&token);
    let records: Api<warren_k8s::MeshNode> = Api::all(stranger);
    let change = Patch::Merge(json!({"spec": {"port": 1}}));
    let refused = records
        .patch("hook-ready", &PatchParams::default(), &change)
        .await;
    assert!(refused.is_err(), "it writes no record");
}

#[test]
fn a_server_that_does_not_tell_nodes_apart_is_refused_unless_that_is_accepted() {
    let old = ["--kube-version", "1.29.3"];
    let refused = template(NAMESPACE, &[], &old);
    assert!(!refused.status.success());
    let sentence = said(&refused);
    assert!(
        sentence.contains("Kubernetes v1.29.3 does not tell"),
        "{sentence}"
    );
    assert!(sentence.contains("acceptSharedIdentity=true"), "{sentence}");

    let accepted = template(NAMESPACE, &["acceptSharedIdentity=true"], &old);
    assert!(accepted.status.success(), "{}", said(&accepted));
    let text = String::from_utf8(accepted.stdout).expect("text");
    assert!(
        !text.contains("ValidatingAdmissionPolicy"),
        "it is not served"
    );
    let set = ["acceptSharedIdentity=true", "startupTaint.enabled=true"];
    let refused = template(NAMESPACE, &set, &old);
    assert!(said(&refused).contains("startupTaint.enabled is true"));
    // Vendors add to the version.
    let vendor = template(NAMESPACE, &[], &["--kube-version", "v1.30.0-eks-1"]);
    assert!(vendor.status.success(), "{}", said(&vendor));
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    for (set, name) in [
        ("imag.tag=1", "imag"),
        ("image.repository=", "repository"),
        ("image.repository=a b", "repository"),
        ("image.digest=sha256:12", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("mesh.spec.enforcement=Lax", "enforcement"),
        ("mesh.spec.enforcement=Strict", "podPrefixes"),
        ("mesh.spec.podPrefixes={all}", "podPrefixes"),
        ("mesh.spec.mtu=500", "mtu"),
        ("http.address=0.0.0.0:9586", "address"),
        ("http.address=127.0.0.1", "address"),
        ("workers=0", "workers"),
        ("log=a b", "log"),
        ("api.port=https", "port"),
        ("state.hostPath=/", "hostPath"),
        ("state.hostPath=var", "hostPath"),
        ("state.hostPath=/var/../etc", "hostPath"),
        ("security.seLinuxType=a:b", "seLinuxType"),
        ("security.sysNice=perhaps", "sysNice"),
        ("startupTaint.enabled=1", "enabled"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("uninstall.timeoutSeconds=1", "timeoutSeconds"),
        ("nodeSelector.a=1", "nodeSelector"),
    ] {
        let refused = template(NAMESPACE, &[set], &[]);
        let sentence = said(&refused);
        assert!(!refused.status.success(), "{set} is taken");
        assert!(
            sentence.contains("don't meet the specifications of the schema")
                && sentence.contains(name),
            "{set}: {sentence}"
        );
    }
}

/// A kubelet that registers with a taint has nothing on its node before the fence stands there.
#[tokio::test]
async fn the_taint_of_a_new_node_goes_once_its_daemon_is_at_work_and_nothing_else_of_it() {
    // Other tests look at all nodes of theirs.
    let server = Server::start(Options::default()).await;
    let cluster = Cluster::bare(Arc::new(server));
    cluster.install().await;
    let kubeconfig = starter(&cluster).await;
    let unready = joined(&cluster, "starting-a", true).await;
    let ready = joined(&cluster, "starting-b", true).await;
    taint(&cluster, "starting-a").await;
    taint(&cluster, "starting-b").await;
    // Where a TUN is missing the fence may be, too.
    tell(&unready, "Strict", "False", NODE_UNREADY).await;
    report(&ready, "Staged").await;

    let mut starting = warren(&["untaint"], &kubeconfig).spawn().expect("warren");
    let taints = async |name: &'static str| {
        let nodes: Api<Node> = Api::all(cluster.admin.clone());
        let node = nodes.get(name).await.expect("it is there");
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let keys = taints.into_iter().map(|taint| taint.key);
        keys.collect::<Vec<String>>()
    };
    eventually("it is gone from the one that is ready", || async {
        taints("starting-b").await == ["other"]
    })
    .await;
    // Its turn came before, if it had one.
    assert_eq!(taints("starting-a").await, [STARTING, "other"]);
    // A peer that nobody reaches keeps no pod from its node.
    tell(&unready, "Strict", "False", "PeersUnready").await;
    eventually("it is gone from the other", || async {
        taints("starting-a").await == ["other"]
    })
    .await;

    assert!(starting.try_wait().expect("a child").is_none(), "it stays");
    let pid = Pid::from_child(&starting);
    kill_process(pid, Signal::TERM).expect("it runs");
    let done = starting.wait_with_output().expect("warren");
    assert!(done.status.success(), "{}", said(&done));
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    let expected = format!("starting-b: its mesh is Staged; the taint {STARTING} is gone\n");
    assert!(told.starts_with(&expected), "{told}{}", said(&done));
}

#[tokio::test]
async fn whoever_takes_the_taint_away_can_do_nothing_else_to_a_node() {
    let cluster = Cluster::shared().await;
    starter(&cluster).await;
    let name = "starting-victim";
    cluster.node(name, &[]).await;
    taint(&cluster, name).await;
    let (token, _) = account(&cluster, "warren-starting").await;
    let nodes: Api<Node> = Api::all(cluster.server.client(&token));
    let other = json!({"key": "other", "effect": "NoExecute"});
    let starting = json!({"key": STARTING, "effect": "NoSchedule"});
    let evil = json!({"key": "evil", "effect": "NoExecute"});
    for (change, why) in [
        (json!({"spec": {"taints": []}}), "taints"),
        (json!({"spec": {"taints": [starting]}}), "taints"),
        (json!({"spec": {"taints": [other, evil]}}), "taints"),
        (
            json!({"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}}),
            "taints",
        ),
        (json!({"spec": {"unschedulable": true}}), "nothing else"),
        (json!({"spec": {"providerID": "mine"}}), "nothing else"),
        (json!({"metadata": {"labels": {"a": "b"}}}), "nothing else"),
        (
            json!({"metadata": {"annotations": {"a": "b"}}}),
            "nothing else",
        ),
        (
            json!({"metadata": {"finalizers": ["warren.dev/mine"]}}),
            "nothing else",
        ),
    ] {
        let patch = Patch::Merge(&change);
        let patched = nodes.patch(name, &PatchParams::default(), &patch).await;
        let refused = patched.expect_err("it is refused").to_string();
        assert!(refused.contains("warren-starting"), "{change}: {refused}");
        assert!(refused.contains(why), "{change}: {refused}");
    }
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
    let by = PatchParams::default();
    let patched = nodes.patch_status(name, &by, &status).await;
    assert!(is_forbidden(&patched.expect_err("it is refused")));
    let deleted = nodes.delete(name, &DeleteParams::default()).await;
    assert!(is_forbidden(&deleted.expect_err("it is refused")));

    // Whatever role somebody binds to it.
    let all = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "too-much"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "warren-starting", "namespace": NAMESPACE}],
    });
    cluster.apply(&object(all)).await.expect("a binding");
    eventually("it has the right", || async {
        nodes.list(&Default::default()).await.is_ok()
    })
    .await;
    let refused = |result: kube::Result<()>| {
        let refused = result.expect_err("it is refused").to_string();
        assert!(refused.contains("warren-starting"), "{refused}");
    };
    refused((nodes.patch_status(name, &by, &status)).await.map(drop));
    refused(nodes.delete(name, &DeleteParams::default()).await.map(drop));
    let made: Node =
        object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "made"}}));
    refused(
        (nodes.create(&PostParams::default(), &made))
            .await
            .map(drop),
    );
    let applied = PatchParams::apply("somebody").force();
    refused(
        (nodes.patch("made", &applied, &Patch::Apply(&made)))
            .await
            .map(drop),
    );
    let prefix =
        Patch::Merge(json!({"spec": {"podCIDR": "10.9.9.0/24", "podCIDRs": ["10.9.9.0/24"]}}));
    refused((nodes.patch(name, &by, &prefix)).await.map(drop));
    let owned = Patch::Merge(json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "y"},
    ]}}));
    refused((nodes.patch(name, &by, &owned)).await.map(drop));
}

/// What takes the taint away has its rights, and the policy that holds it to them is in force; its kubeconfig.
async fn starter(cluster: &Cluster) -> PathBuf {
    for object in rendered(NAMESPACE, &["startupTaint.enabled=true"]) {
        let kind = object.types.as_ref().map(|types| types.kind.as_str());
        if object.name_any() == "warren-starting" && kind != Some("Deployment") {
            cluster.apply(&object).await.expect("its rights");
        }
    }
    let (token, kubeconfig) = account(cluster, "warren-starting").await;
    let nodes: Api<Node> = Api::all(cluster.server.client(&token));
    eventually("it may not cordon a node", || async {
        let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        let by = PatchParams::default().dry_run();
        let refused = nodes.patch("installed", &by, &cordon).await;
        refused.is_err_and(|error| error.to_string().contains("warren-starting"))
    })
    .await;
    kubeconfig
}

/// As the kubelet registered it, and somebody else has tainted it, too.
async fn taint(cluster: &Cluster, name: &str) {
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let taints = Patch::Merge(json!({"spec": {"taints": [
        {"key": STARTING, "effect": "NoSchedule"},
        {"key": "other", "value": "kept", "effect": "NoExecute"},
    ]}}));
    let patched = nodes.patch(name, &PatchParams::default(), &taints).await;
    patched.expect("taints");
}

/// The token of an account of the chart, and a kubeconfig with it.
async fn account(cluster: &Cluster, name: &str) -> (String, PathBuf) {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let by = PostParams::default();
    let request = TokenRequest::default();
    let answer = accounts.create_token_request(name, &by, &request).await;
    let token = answer.expect("a token").status.expect("it is there").token;
    let kubeconfig = cluster.server.kubeconfig(name, &token);
    (token, kubeconfig)
}

/// `warren cluster` with these words, by this kubeconfig.
fn warren(words: &[&str], kubeconfig: &Path) -> Command {
    let mut command = Command::new(built("warren"));
    command.arg("cluster").args(words);
    command.arg("--kubeconfig").arg(kubeconfig);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A node with a daemon that has published its record.
async fn joined(cluster: &Cluster, name: &str, is_ready: bool) -> Daemon {
    cluster.node(name, &[]).await;
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let condition = json!({"type": "Ready", "status": if is_ready { "True" } else { "Unknown" }});
    let status = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let patched = nodes
        .patch_status(name, &PatchParams::default(), &status)
        .await;
    patched.expect("a condition");
    let daemon = cluster.daemon(name).await;
    daemon.apply(&daemon.record()).await.expect("a record");
    daemon
}

/// A daemon says what it enforces, and that it is well.
async fn report(daemon: &Daemon, enforcement: &str) {
    tell(daemon, enforcement, "True", "AllReady").await;
}

/// A daemon says what it enforces, and whether it is ready.
async fn tell(daemon: &Daemon, enforcement: &str, ready: &str, reason: &str) {
    let status = json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": daemon.node},
        "status": {
            "nodeUID": daemon.uid,
            "enforcement": enforcement,
            "conditions": [{
                "type": "Ready",
                "status": ready,
                "reason": reason,
                "message": "",
                "lastTransitionTime": "2026-11-21T12:00:00Z",
            }],
        },
    });
    let by = PatchParams::apply("warrend-status").force();
    let records = daemon.records();
    let patched = records
        .patch_status(&daemon.node, &by, &Patch::Apply(status))
        .await;
    patched.expect("a status");
}

fn chart() -> PathBuf {
    deploy().join("../chart")
}

fn is_hook(object: &DynamicObject) -> bool {
    object.annotations().contains_key("helm.sh/hook")
}

fn daemon_set(set: &[&str]) -> Value {
    let objects = rendered(NAMESPACE, set);
    let found = (objects.iter()).find(|object| {
        object
            .types
            .as_ref()
            .is_some_and(|it| it.kind == "DaemonSet")
    });
    serde_json::to_value(found.expect("a DaemonSet")).expect("plain data")
}

/// What `helm install` would create with these values.
fn rendered(namespace: &str, set: &[&str]) -> Vec<DynamicObject> {
    let output = template(namespace, set, &[]);
    assert!(output.status.success(), "{set:?}: {}", said(&output));
    objects(&output.stdout)
}

fn template(namespace: &str, set: &[&str], more: &[&str]) -> Output {
    let mut arguments = vec!["template", "warren", ".", "--namespace", namespace];
    for value in set {
        arguments.extend(["--set", value]);
    }
    arguments.extend(more);
    helm(&arguments)
}

fn objects(text: &[u8]) -> Vec<DynamicObject> {
    let text = std::str::from_utf8(text).expect("text");
    let documents: Vec<Option<DynamicObject>> =
        serde_saphyr::from_multiple(text).expect("it is YAML");
    documents.into_iter().flatten().collect()
}

fn helm(arguments: &[&str]) -> Output {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/build.sh");
        let output = Command::new(script)
            .stderr(Stdio::inherit())
            .output()
            .expect("the script is there");
        assert!(output.status.success(), "there is no Helm");
        let text = String::from_utf8(output.stdout).expect("a path is text");
        text.trim_end().into()
    });
    Command::new(program)
        .current_dir(chart())
        .args(arguments)
        .output()
        .expect("Helm")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

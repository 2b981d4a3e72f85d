//! The definitions in `deploy/kubernetes/crds` are those of the types.

use std::fs;

use warren_k8s::crds;

#[expect(
    dead_code,
    reason = "the program that writes the files, without its main"
)]
#[path = "../examples/crds.rs"]
mod written;

#[test]
fn the_files_of_the_definitions_are_those_of_the_types() {
    let files = written::files();
    for (path, text) in &files {
        let found = fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == *text,
            "{} is stale: cargo run -p warren-k8s --example crds",
            path.display()
        );
    }
    let folder = files[0].0.parent().expect("a folder");
    let found = fs::read_dir(folder).expect("it is in the checkout");
    assert_eq!(found.count(), files.len(), "a file without a resource");
}

#[test]
fn every_field_is_explained() {
    for crd in crds() {
        let version = serde_json::to_value(&crd.spec.versions[0]).expect("JSON");
        let mut without = Vec::new();
        unexplained(
            &version["schema"]["openAPIV3Schema"],
            &crd.spec.names.kind,
            &mut without,
        );
        assert_eq!(without, [""; 0]);
    }
}

#[test]
fn no_number_has_a_format_that_the_server_warns_of() {
    let text = serde_json::to_string(&crds()).expect("JSON");
    assert!(text.contains("\"format\":\"int64\""));
    assert!(!text.contains("\"format\":\"uint"));
}

fn unexplained(schema: &serde_json::Value, path: &str, without: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, schema) in properties {
        let path = format!("{path}.{name}");
        if !schema["description"].is_string() {
            without.push(path.clone());
        }
        unexplained(schema, &path, without);
    }
}

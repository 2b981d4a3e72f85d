//! The definitions of the resources, as the API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::resources::{Mesh, MeshNode};

/// The definitions of both resources.
pub fn crds() -> [CustomResourceDefinition; 2] {
    [Mesh::crd(), MeshNode::crd()].map(|crd| {
        let mut value = serde_json::to_value(crd).expect("a definition is JSON");
        strip_foreign_formats(&mut value);
        serde_json::from_value(value).expect("it still is a definition")
    })
}

/// Takes away the formats that Rust's integers bring and the API server warns of. The bounds beside
/// them say the same.
fn strip_foreign_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                name != "format"
                    || !value
                        .as_str()
                        .is_some_and(|format| format.starts_with("uint"))
            });
            fields.values_mut().for_each(strip_foreign_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_foreign_formats),
        _ => {}
    }
}

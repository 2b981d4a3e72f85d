//! A cluster with the mesh's resources and rights in it, whose nodes and pods are played.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time;
use warren_k8s::{Access, MeshNode};

use crate::{Server, crds, manifests};

/// Where the daemon's account is, and what it is called.
pub const NAMESPACE: &str = "warren-system";
/// The daemon's account.
pub const ACCOUNT: &str = "warrend";

/// How long what was installed may take to be in force. It takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with everything of `deploy/kubernetes` in it.
#[derive(Clone)]
pub struct Cluster {
    /// The server itself.
    pub server: Arc<Server>,
    /// A client that may do everything.
    pub admin: Client,
}

/// What the daemon of a node has: its `Node`, and the token of its pod.
#[derive(Clone)]
pub struct Daemon {
    /// The name of its `Node`.
    pub node: String,
    /// The uid of its `Node`.
    pub uid: String,
    /// Acts with the token.
    pub client: Client,
    /// The token of its pod.
    pub token: String,
}

impl Cluster {
    /// The one that all tests of this program share. Each test names its nodes by itself.
    pub async fn shared() -> Self {
        static INSTALLED: OnceCell<()> = OnceCell::const_new();
        let server = Server::shared().await;
        let cluster = Self::bare(server);
        INSTALLED.get_or_init(|| cluster.install()).await;
        cluster
    }

    /// A server as it is.
    pub fn bare(server: Arc<Server>) -> Self {
        Self {
            admin: server.admin(),
            server,
        }
    }

    /// Installs the definitions and the manifests, and waits until they are in force.
    pub async fn install(&self) {
        for object in crds() {
            self.apply(&object).await.expect("a definition");
        }
        eventually("the resources are served", || async {
            let records: Api<MeshNode> = Api::all(self.admin.clone());
            let meshes: Api<warren_k8s::Mesh> = Api::all(self.admin.clone());
            records.list(&Default::default()).await.is_ok()
                && meshes.list(&Default::default()).await.is_ok()
        })
        .await;
        for object in manifests() {
            self.apply(&object).await.expect("a manifest");
        }
        self.node("installed", &[]).await;
        let stranger = self.daemon("installed").await;
        eventually("a foreign record is refused", || async {
            let foreign = stranger.record_of("another", &stranger.uid);
            stranger
                .apply_dry(&foreign)
                .await
                .is_err_and(|error| is_denied(&error))
        })
        .await;
    }

    /// Applies an object of whatever kind, as `kubectl apply --server-side` does.
    pub async fn apply(&self, object: &DynamicObject) -> kube::Result<DynamicObject> {
        self.patch(object, PatchParams::apply("tests").force())
            .await
    }

    /// What [`Cluster::apply`] would do, without doing it; fields that the schema does not know are
    /// refused.
    pub async fn apply_dry(&self, object: &DynamicObject) -> kube::Result<DynamicObject> {
        let params = PatchParams::apply("tests").force().dry_run();
        self.patch(object, params.validation_strict()).await
    }

    async fn patch(
        &self,
        object: &DynamicObject,
        params: PatchParams,
    ) -> kube::Result<DynamicObject> {
        let types = object.types.as_ref().expect("a manifest says its kind");
        let kind = types.try_into().expect("a manifest says its version");
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(self.admin.clone(), &namespace, &resource),
            None => Api::all_with(self.admin.clone(), &resource),
        };
        api.patch(&object.name_any(), &params, &Patch::Apply(object))
            .await
    }

    /// Makes a `Node` with two addresses and `pod_cidrs`; its uid.
    pub async fn node(&self, name: &str, pod_cidrs: &[&str]) -> String {
        let mut node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
            ]},
        });
        if let Some(first) = pod_cidrs.first() {
            node["spec"] = json!({"podCIDR": first, "podCIDRs": pod_cidrs});
        }
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let node = nodes.create(&PostParams::default(), &object(node)).await;
        node.expect("a Node").uid().expect("it has one")
    }

    /// The daemon of a node that exists: makes its pod, and asks for the token that a kubelet would
    /// mount into it.
    pub async fn daemon(&self, node: &str) -> Daemon {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let uid = nodes.get(node).await.expect("the Node").uid();
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let pod = object(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "warrend-"},
            "spec": {
                "serviceAccountName": ACCOUNT,
                "nodeName": node,
                "containers": [{"name": "warrend", "image": "warrend"}],
            },
        }));
        let pod: Pod = pods
            .create(&PostParams::default(), &pod)
            .await
            .expect("a Pod");
        let token = self.token(Some(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        }));
        let token = token.await;
        Daemon {
            node: node.to_owned(),
            uid: uid.expect("it has one"),
            client: self.server.client(&token),
            token,
        }
    }

    /// Acts with a token of the daemon's account that is bound to nothing.
    pub async fn unbound(&self) -> Client {
        self.server.client(&self.token(None).await)
    }

    async fn token(&self, bound_object_ref: Option<BoundObjectReference>) -> String {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                bound_object_ref,
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let by = PostParams::default();
        let answer = accounts.create_token_request(ACCOUNT, &by, &request).await;
        let status = answer.expect("a token").status;
        status.expect("the answer has it").token
    }
}

impl Daemon {
    /// How this daemon reaches `cluster`, with a token in a file of its own.
    pub fn access(&self, cluster: &Cluster) -> Access {
        Access::Kubeconfig(cluster.server.kubeconfig(&self.node, &self.token))
    }

    /// The record that this daemon may write.
    pub fn record(&self) -> Value {
        self.record_of(&self.node, &self.uid)
    }

    /// A record with this name and uid, in all else as it should be.
    pub fn record_of(&self, name: &str, uid: &str) -> Value {
        json!({
            "apiVersion": "mesh.warren.dev/v1alpha1",
            "kind": "MeshNode",
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
            },
            "spec": {
                "nodeUID": uid,
                "publicKey": "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
                "endpoints": ["192.0.2.1"],
                "port": 51820,
                "mode": "Route",
                "mtu": 1420,
                "epoch": 1,
                "version": "0.1.0",
            },
        })
    }

    /// Writes a record as daemons do.
    pub async fn apply(&self, record: &Value) -> kube::Result<MeshNode> {
        self.patch(record, PatchParams::apply("warrend").force())
            .await
    }

    /// What [`Daemon::apply`] would do, without doing it.
    pub async fn apply_dry(&self, record: &Value) -> kube::Result<MeshNode> {
        self.patch(record, PatchParams::apply("warrend").force().dry_run())
            .await
    }

    async fn patch(&self, record: &Value, params: PatchParams) -> kube::Result<MeshNode> {
        let name = record["metadata"]["name"]
            .as_str()
            .expect("a record has a name");
        self.records()
            .patch(name, &params, &Patch::Apply(record))
            .await
    }

    /// All records, as this daemon reaches them.
    pub fn records(&self) -> Api<MeshNode> {
        Api::all(self.client.clone())
    }
}

/// Whether the admission policy, and not a missing right, was what refused.
pub fn is_denied(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.message.contains("ValidatingAdmissionPolicy 'warren-own-record'"))
}

/// Whether a missing right was what refused.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403 && !is_denied(error))
}

/// Waits for what the server does in its own time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        let mut look = time::interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            if condition().await {
                return;
            }
        }
    };
    let in_time = time::timeout(PATIENCE, wait).await;
    assert!(in_time.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// An object from its JSON.
pub fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of this kind")
}

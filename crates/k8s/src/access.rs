//! How to reach the API server, and every request that is made of it.
//!
//! Of `kube` this uses what knows of kubeconfigs, tokens and certificates. The requests are made here,
//! since what decides the next step is in their answers: `Retry-After`, 410, and how long a watch has
//! been silent.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use serde::de::DeserializeOwned;
use tokio::time;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long an answer that ends by itself may take. The first list of a large cluster takes seconds.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection on which nothing arrives is probed after this, and given up after three more probes
/// this far apart: a server that vanished is missed within a minute, though a watch sends nothing.
const PROBE: Duration = Duration::from_secs(15);

/// Characters of an answer that is an error. What is longer is no sentence.
const SENTENCE: usize = 512;

/// Bytes of such an answer that are read.
const REFUSAL_MAX: usize = 64 << 10;

/// Bytes of an answer, or of a line of a watch, that has one object. A server stores none of more than
/// 3 MiB, and writes it down in more.
const OBJECT_MAX: usize = 8 << 20;

/// Bytes of an answer that has many: the `Node` objects of 5,000 nodes are 60 MB.
const LIST_MAX: usize = 256 << 20;

/// Objects of one resource. A cluster has 5,000 nodes at most, by what Kubernetes promises.
pub(crate) const OBJECTS_MAX: usize = 20_000;

/// What grants a daemon what it needs.
const RIGHTS: &str = "deploy/kubernetes/rights.yaml";

/// The ValidatingAdmissionPolicy that tells the daemons of different nodes apart.
pub(crate) const OWN_RECORD: &str = "warren-own-record";
/// The chart's policy that leaves whoever takes starting taints away nothing else.
const STARTING_ALONE: &str = "warren-starting";

/// What stands before the name of a policy in what it refuses by
/// (k8s.io/apiserver, pkg/admission/plugin/policy/validating/dispatcher.go).
const BY_POLICY: &str = "ValidatingAdmissionPolicy '";

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// From a pod: by the address in its environment, with the token and the certificate that are
    /// mounted into it.
    InCluster,
    /// As a kubeconfig says, in its current context.
    Kubeconfig(PathBuf),
}

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// This is no pod, or one without an account.
    #[error(
        "the way to the API server from inside a cluster is not there: {0}; run as a pod with a \
         service account, or name a kubeconfig"
    )]
    InCluster(String),
    /// The kubeconfig is none.
    #[error("the kubeconfig {path} cannot be used: {cause}")]
    Kubeconfig {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Its certificates or tokens cannot be used.
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(String),
}

/// Reads the credentials. It does not ask the API server for anything, which may be away for long.
pub async fn connect(access: &Access) -> Result<Client, AccessError> {
    let (made, server) = make(access).await?;
    Ok(Client(Arc::new(Inner {
        access: access.clone(),
        server,
        made: Mutex::new(Made {
            client: made,
            generation: 0,
        }),
    })))
}

impl Client {
    /// The address that the credentials name, if it is one: what lies behind it may have others.
    pub fn server(&self) -> Option<IpAddr> {
        self.0.server
    }
}

/// A way to the API server. Clones share their connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    access: Access,
    server: Option<IpAddr>,
    made: Mutex<Made>,
}

#[derive(Clone)]
struct Made {
    client: kube::Client,
    /// Counts how often credentials were read.
    generation: u64,
}

/// Why a request was not answered as wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The server refused it.
    #[error("the API server answered {code}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// What it says.
        message: String,
        /// When to ask again, where it says so.
        retry_after: Option<Duration>,
    },
    /// It was not reached, or was lost.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Its answer is none.
    #[error("the API server's answer cannot be read: {0}")]
    Unreadable(String),
}

/// What refuses a request for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied<'a> {
    /// Nobody knows who asks.
    Credentials,
    /// Who asks has no right to. No policy was asked.
    Rights,
    /// The ValidatingAdmissionPolicy of this name. Of several that refuse the server names the first.
    Policy(&'a str),
}

impl Failure {
    /// The HTTP status, if there was one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// When the server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request may be answered otherwise soon.
    pub(crate) fn is_of_a_moment(&self) -> bool {
        self.code().is_none_or(|code| code == 429 || code >= 500)
    }

    /// What refused, if it was not the server's state.
    pub(crate) fn denied(&self) -> Option<Denied<'_>> {
        let Self::Refused { code, message, .. } = self else {
            return None;
        };
        // What a policy says by itself comes after its name.
        let policy = || Some(message.split_once(BY_POLICY)?.1.split_once('\'')?.0);
        match (code, policy()) {
            (401, _) => Some(Denied::Credentials),
            (403 | 422, Some(policy)) => Some(Denied::Policy(policy)),
            (403, None) => Some(Denied::Rights),
            _ => None,
        }
    }

    /// Whether this daemon lacks a right. That nobody knows who asks is no such thing: a server that is not
    /// itself says so to all at once.
    pub(crate) fn lacks_right(&self) -> bool {
        matches!(self.denied(), Some(Denied::Rights | Denied::Policy(_)))
    }

    /// What went wrong, and what to do about it where somebody can.
    pub(crate) fn sentence(&self) -> String {
        let remedy = match self.denied() {
            None => return self.to_string(),
            Some(Denied::Credentials) => {
                "; the token has expired or is another cluster's: start the pod anew".to_owned()
            }
            Some(Denied::Policy(OWN_RECORD)) => {
                "; a daemon may write the record of its own Node alone, by a token that names it"
                    .to_owned()
            }
            Some(Denied::Policy(STARTING_ALONE)) => {
                "; it takes the starting taint away and nothing else: see what changes Nodes on their way in"
                    .to_owned()
            }
            Some(Denied::Policy(other)) => {
                format!("; {other} is none of Warren's: let it except the daemon's account")
            }
            Some(Denied::Rights) => format!("; apply {RIGHTS}, or install the chart again"),
        };
        format!("{self}{remedy}")
    }

    /// What an error event inside a watch says.
    pub(crate) fn of_event(status: &Status) -> Self {
        Self::of_status(status, None)
    }

    fn of_status(status: &Status, header: Option<Duration>) -> Self {
        let details = status.details.as_ref();
        let said = details.map_or(0, |details| details.retry_after_seconds);
        Self::Refused {
            code: status.code,
            message: shortened(&status.message),
            retry_after: header.or((said > 0).then(|| Duration::from_secs(said.into()))),
        }
    }
}

impl Client {
    /// An object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, uri: &str) -> Result<T, Failure> {
        self.ask(Method::GET, uri, None, OBJECT_MAX).await
    }

    /// Many objects.
    pub(crate) async fn list<T: DeserializeOwned>(&self, uri: &str) -> Result<T, Failure> {
        self.ask(Method::GET, uri, None, LIST_MAX).await
    }

    /// A server-side apply.
    pub(crate) async fn apply<T: DeserializeOwned>(
        &self,
        uri: &str,
        object: Vec<u8>,
    ) -> Result<T, Failure> {
        let content = Some(("application/apply-patch+yaml", object));
        self.ask(Method::PATCH, uri, content, OBJECT_MAX).await
    }

    /// Makes or changes an object otherwise.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        content_type: &'static str,
        object: Vec<u8>,
    ) -> Result<T, Failure> {
        let content = Some((content_type, object));
        self.ask(method, uri, content, OBJECT_MAX).await
    }

    /// A watch, whose events arrive as long as it lasts.
    pub(crate) async fn watch(&self, uri: &str) -> Result<Lines, Failure> {
        // The first answer of a watch comes at once, also when nothing ever happens.
        let response = limited(ANSWER, self.respond(&Method::GET, uri, None)).await?;
        Ok(Lines {
            body: response.into_body(),
            rest: Vec::new(),
        })
    }

    /// An answer in JSON that ends by itself, within so many bytes.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        content: Option<(&'static str, Vec<u8>)>,
        bytes_max: usize,
    ) -> Result<T, Failure> {
        let whole = async {
            let response = self.respond(&method, uri, content).await?;
            let body = Limited::new(response.into_body(), bytes_max)
                .collect()
                .await;
            body.map_err(|error| match error.is::<LengthLimitError>() {
                true => too_long(bytes_max),
                false => Failure::Unreachable(chain(&*error)),
            })
        };
        let body = limited(ANSWER, whole).await?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| Failure::Unreadable(error.to_string()))
    }

    /// An answer that is no refusal. Where the credentials are refused they are read anew, once:
    /// tokens are replaced on disk while they are in use.
    async fn respond(
        &self,
        method: &Method,
        uri: &str,
        content: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Response<Body>, Failure> {
        let request = || {
            let mut request = Request::builder().method(method.clone()).uri(uri);
            request = request.header(header::ACCEPT, "application/json");
            let mut body = Vec::new();
            if let Some((content_type, content)) = &content {
                request = request.header(header::CONTENT_TYPE, *content_type);
                body.clone_from(content);
            }
            request
                .body(Body::from(body))
                .map_err(|error| Failure::Unreadable(error.to_string()))
        };
        let Made { client, generation } = self.made();
        let mut response = (client.send(request()?).await).map_err(|error| unreachable(&error))?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(client) = self.renewed(generation).await
        {
            response = (client.send(request()?).await).map_err(|error| unreachable(&error))?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    /// A client with credentials read after those of `generation`, if there are any to be read.
    async fn renewed(&self, generation: u64) -> Option<kube::Client> {
        let current = self.made();
        if current.generation != generation {
            return Some(current.client);
        }
        let (client, _) = make(&self.0.access).await.ok()?;
        let mut made = self.0.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.client = client;
        made.generation += 1;
        Some(made.client.clone())
    }

    fn made(&self) -> Made {
        let made = self.0.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.clone()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.access).finish()
    }
}

/// The lines of a watch.
pub(crate) struct Lines {
    body: Body,
    /// What has arrived of the next line.
    rest: Vec<u8>,
}

impl Lines {
    /// The next line; `None` once the server has ended the watch. `silence` is how long it may take.
    pub(crate) async fn next(&mut self, silence: Duration) -> Result<Option<Vec<u8>>, Failure> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.rest[looked..].iter().position(|&byte| byte == b'\n') {
                let rest = self.rest.split_off(looked + end + 1);
                return Ok(Some(std::mem::replace(&mut self.rest, rest)));
            }
            looked = self.rest.len();
            let frame = time::timeout(silence, self.body.frame());
            match frame.await {
                Err(_) => return Err(Failure::Silent(silence)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Failure::Unreachable(chain(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                    if self.rest.len() > OBJECT_MAX && !self.rest[looked..].contains(&b'\n') {
                        return Err(too_long(OBJECT_MAX));
                    }
                }
            }
        }
    }
}

/// Reads the credentials and makes a client of them.
async fn make(access: &Access) -> Result<(kube::Client, Option<IpAddr>), AccessError> {
    let config = match access {
        Access::InCluster => {
            kube::Config::incluster().map_err(|error| AccessError::InCluster(chain(&error)))?
        }
        Access::Kubeconfig(path) => {
            let unusable = |error: kube::config::KubeconfigError| AccessError::Kubeconfig {
                path: path.clone(),
                cause: chain(&error),
            };
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await;
            config.map_err(unusable)?
        }
    };
    let host = config.cluster_url.host().unwrap_or_default();
    let server = host.trim_matches(['[', ']']).parse().ok();
    let client = stack(&config).map_err(|error| AccessError::Credentials(chain(&error)))?;
    Ok((client, server))
}

/// What `kube` would make of a configuration, less its retries, whose waiting would go unseen, and
/// with a look at whether the server is still there.
fn stack(config: &kube::Config) -> kube::Result<kube::Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(PROBE));
    connector.set_keepalive_interval(Some(PROBE));
    connector.set_keepalive_retries(Some(3));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer()?)
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(client.build::<_, Body>(connector));
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

async fn limited<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let answered = time::timeout(limit, answer).await;
    answered.unwrap_or(Err(Failure::Silent(limit)))
}

async fn refusal(response: Response<Body>) -> Failure {
    let code = response.status().as_u16();
    let header = response.headers().get(header::RETRY_AFTER);
    let header = header.and_then(|value| value.to_str().ok()?.parse().ok());
    let header = header.map(Duration::from_secs);
    let body = Limited::new(response.into_body(), REFUSAL_MAX);
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    match serde_json::from_slice::<Status>(&body) {
        Ok(status) => Failure::of_status(&Status { code, ..status }, header),
        // What stands between, as a proxy, answers with something else.
        Err(_) => Failure::Refused {
            code,
            message: shortened(String::from_utf8_lossy(&body).trim()),
            retry_after: header,
        },
    }
}

/// There are more than any cluster has.
pub(crate) fn too_many(resource: &str) -> Failure {
    Failure::Unreadable(format!("{resource} has more than {OBJECTS_MAX} objects"))
}

fn too_long(bytes_max: usize) -> Failure {
    Failure::Unreadable(format!("it is longer than {} MiB", bytes_max >> 20))
}

fn unreachable(error: &kube::Error) -> Failure {
    Failure::Unreachable(chain(error))
}

/// An error and what caused it: the outermost of these says hardly anything.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    shortened(&text)
}

/// A text as far as people read it.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SENTENCE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

//! An API server that answers as it is told, one request after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

type Waiting = (Asked, Reply);

/// The server. It answers by itself what is not held: the cluster's uid, and empty lists that are
/// streamed and never change.
pub(crate) struct Server {
    port: u16,
    shared: Arc<Mutex<Shared>>,
    folder: PathBuf,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    cluster: String,
    held: BTreeSet<String>,
    queues: BTreeMap<String, Queue>,
}

struct Queue {
    sender: mpsc::UnboundedSender<Waiting>,
    receiver: Option<mpsc::UnboundedReceiver<Waiting>>,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: String,
}

/// A request's connection, which waits for its answer.
pub(crate) struct Reply(TcpStream);

/// An answer that goes on.
pub(crate) struct Stream(TcpStream);

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Mutex::new(Shared {
            cluster: "the-cluster".to_owned(),
            ..Shared::default()
        }));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, shared.clone()));
        Self {
            port,
            shared,
            folder: folder(port),
            _tasks: tasks,
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let path = self.folder.join("kubeconfig");
        let server = format!("http://127.0.0.1:{}", self.port);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": server}}],
            "users": [{"name": "it", "user": {}}],
        });
        std::fs::write(&path, kubeconfig.to_string()).expect("it is ours");
        path
    }

    /// Requests for `path` wait for [`Server::asked`].
    pub(crate) fn hold(&self, path: &str) {
        self.shared().held.insert(path.to_owned());
    }

    /// The next request for a path that is held.
    pub(crate) async fn asked(&self, path: &str) -> Waiting {
        let mut receiver = {
            let mut shared = self.shared();
            let queue = shared
                .queues
                .entry(path.to_owned())
                .or_insert_with(Queue::new);
            queue.receiver.take().expect("one at a time")
        };
        let asked = time::timeout(PATIENCE, receiver.recv()).await;
        let asked = asked.unwrap_or_else(|_| panic!("nobody asked for {path}"));
        let mut shared = self.shared();
        let queue = shared.queues.get_mut(path).expect("it was made above");
        queue.receiver = Some(receiver);
        asked.expect("the server lives")
    }

    pub(crate) fn become_cluster(&self, uid: &str) {
        uid.clone_into(&mut self.shared().cluster);
    }

    /// Whoever reads from this server has had time to.
    pub(crate) async fn settled(&self) {
        // A connection of our own is served after what was written before it.
        let mut connection = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .expect("it listens");
        let request = b"GET /api/v1/namespaces/kube-system HTTP/1.1\r\nconnection: close\r\n\r\n";
        connection.write_all(request).await.expect("it reads");
        let mut answer = Vec::new();
        connection
            .read_to_end(&mut answer)
            .await
            .expect("it answers");
        assert!(!answer.is_empty());
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("nobody panicked")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A folder of a server's own: nobody else has this port.
fn folder(port: u16) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("warren-k8s-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
    folder
}

impl Queue {
    fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Some(receiver),
        }
    }
}

impl Reply {
    pub(crate) async fn refuse(mut self, code: u16, message: &str, retry_after: Option<u64>) {
        let after = retry_after
            .map(|secs| format!("retry-after: {secs}\r\n"))
            .unwrap_or_default();
        let body = status(code, message).to_string();
        answer(&mut self.0, &format!("{code} No"), &after, &body).await;
    }

    pub(crate) async fn page(mut self, items: &[Value], version: u64, next: Option<&str>) {
        let body = json!({
            "metadata": {"resourceVersion": version.to_string(), "continue": next.unwrap_or_default()},
            "items": items,
        });
        answer(&mut self.0, "200 OK", "", &body.to_string()).await;
    }

    pub(crate) async fn stream(mut self) -> Stream {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        self.0.write_all(head.as_bytes()).await.expect("it is read");
        Stream(self.0)
    }
}

impl Stream {
    pub(crate) async fn event(&mut self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        self.0
            .write_all(chunk.as_bytes())
            .await
            .expect("it is read");
    }

    /// Writes bytes of a line. Whether somebody reads still.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        let head = format!("{:x}\r\n", bytes.len());
        let chunk = [head.as_bytes(), bytes, b"\r\n"].concat();
        self.0.write_all(&chunk).await.is_ok()
    }

    pub(crate) async fn end(mut self) {
        self.0.write_all(b"0\r\n\r\n").await.expect("it is read");
    }
}

pub(crate) fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "No"})
}

async fn accept(listener: TcpListener, shared: Arc<Mutex<Shared>>) {
    let mut connections = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        connections.spawn(serve(connection, shared.clone()));
    }
}

/// Answers the one request of a connection.
async fn serve(mut connection: TcpStream, shared: Arc<Mutex<Shared>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).expect("a request is text");
    let uri = head.split(' ').nth(1).expect("a request has a path");
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let asked = Asked {
        path: path.to_owned(),
        query: query.to_owned(),
    };
    if asked.path == "/api/v1/namespaces/kube-system" {
        let uid = shared.lock().expect("nobody panicked").cluster.clone();
        let body = json!({"metadata": {"name": "kube-system", "uid": uid}});
        answer(&mut connection, "200 OK", "", &body.to_string()).await;
        return;
    }
    let held = shared
        .lock()
        .expect("nobody panicked")
        .held
        .contains(&asked.path);
    if held {
        let mut shared = shared.lock().expect("nobody panicked");
        let queue = shared
            .queues
            .entry(asked.path.clone())
            .or_insert_with(Queue::new);
        let _ = queue.sender.send((asked, Reply(connection)));
        return;
    }
    let mut stream = Reply(connection).stream().await;
    let end = json!({"metadata": {
        "resourceVersion": "1",
        "annotations": {"k8s.io/initial-events-end": "true"},
    }});
    stream.event("BOOKMARK", &end).await;
    std::future::pending::<()>().await;
}

async fn answer(connection: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\nconnection: \
         close\r\n\r\n",
        body.len()
    );
    // Whoever asked may have gone.
    let _ = connection.write_all(head.as_bytes()).await;
    let _ = connection.write_all(body.as_bytes()).await;
}

//! The API server with its etcd, as child processes.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kube::{Client, Config};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time;

use crate::programs::programs;

/// A token whose bearer may do everything.
const ADMIN: &str = "the-administrator";

/// How long a start may take at most. It takes two to three seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at whether the server is ready.
const LOOK: Duration = Duration::from_millis(20);

/// How the server is to be started.
#[derive(Debug, Default, Clone, Copy)]
pub struct Options {
    /// The version whose APIs and features to show, as 1.33; the program's own where it is `None`.
    pub emulated_version: Option<&'static str>,
    /// Features to switch on or off, as `WatchList=false`.
    pub feature_gates: Option<&'static str>,
}

/// An API server that is ready, and its etcd. Both end with this, and with the test's process.
#[derive(Debug)]
pub struct Server {
    options: Options,
    address: Ipv4Addr,
    ports: Ports,
    folder: PathBuf,
    /// The certificate of the one who signed the server's, in DER.
    root: Vec<u8>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    etcd: u16,
    etcd_peers: u16,
    apiserver: u16,
}

/// The processes. The API server ends before its etcd.
#[derive(Debug)]
struct Running {
    apiserver: Supervised,
    etcd: Supervised,
}

impl Server {
    /// The one that all tests of this program share.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<Server>> = OnceCell::const_new();
        let start = || async { Arc::new(Self::start(Options::default()).await) };
        SHARED.get_or_init(start).await.clone()
    }

    /// Starts one, and waits until it is ready.
    pub async fn start(options: Options) -> Self {
        static STARTED: AtomicU16 = AtomicU16::new(0);
        let serial = STARTED.fetch_add(1, Ordering::Relaxed);
        let address = own_address();
        let folder = folder(serial);
        let root = credentials(&folder, address);
        // The ports are fixed: nobody else is on this address, so that none can be taken meanwhile.
        let [etcd, etcd_peers, apiserver] = [2379, 2380, 6443].map(|port| port + 10 * serial);
        let server = Self {
            options,
            address,
            ports: Ports {
                etcd,
                etcd_peers,
                apiserver,
            },
            folder,
            root,
            running: Mutex::new(None),
        };
        server.resume().await;
        server
    }

    /// Kills the server and its etcd. Their data and ports stay.
    pub fn halt(&self) {
        let running = self.running().take();
        if let Some(Running { apiserver, etcd }) = running {
            apiserver.kill();
            etcd.kill();
        }
    }

    /// Starts them again after [`Server::halt`], and waits until they are ready.
    pub async fn resume(&self) {
        let etcd = Supervised::spawn("etcd", &self.etcd(), &self.folder);
        let apiserver = Supervised::spawn("kube-apiserver", &self.apiserver(), &self.folder);
        *self.running() = Some(Running { apiserver, etcd });
        if time::timeout(PATIENCE, self.ready()).await.is_err() {
            panic!("not ready in {PATIENCE:?}:\n{}", self.log());
        }
    }

    /// Takes all data away from a server that is halted: what starts next is another cluster.
    pub fn wipe(&self) {
        assert!(self.running().is_none(), "it is halted first");
        fs::remove_dir_all(self.folder.join("etcd")).expect("it is ours");
    }

    fn etcd(&self) -> Command {
        let url = format!("http://{}:{}", self.address, self.ports.etcd);
        let peers_url = format!("http://{}:{}", self.address, self.ports.etcd_peers);
        let mut etcd = Command::new(&programs().etcd);
        etcd.arg("--data-dir")
            .arg(self.folder.join("etcd"))
            // The data is thrown away.
            .arg("--unsafe-no-fsync")
            .args(["--log-level", "warn"])
            .args(["--listen-client-urls", &url])
            .args(["--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peers_url])
            .args(["--initial-advertise-peer-urls", &peers_url])
            .args(["--initial-cluster", &format!("default={peers_url}")]);
        etcd
    }

    fn apiserver(&self) -> Command {
        let Self {
            address,
            ports,
            folder,
            ..
        } = self;
        let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
        let mut apiserver = Command::new(&programs().apiserver);
        apiserver
            .arg(format!("--etcd-servers=http://{address}:{}", ports.etcd))
            .arg(format!("--bind-address={address}"))
            .arg(format!("--secure-port={}", ports.apiserver))
            // A machine without a default route has no address that could be found.
            .arg(format!("--advertise-address={address}"))
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--authorization-mode=Node,RBAC")
            .arg("--allow-privileged=true")
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(file("service-account-key-file", "accounts.pub"))
            .arg(file("service-account-signing-key-file", "accounts.key"))
            .arg(file("tls-cert-file", "server.crt"))
            .arg(file("tls-private-key-file", "server.key"))
            .arg(file("token-auth-file", "tokens.csv"));
        if let Some(version) = self.options.emulated_version {
            apiserver.arg(format!("--emulated-version={version}"));
        }
        if let Some(gates) = self.options.feature_gates {
            apiserver.arg(format!("--feature-gates={gates}"));
        }
        apiserver
    }

    /// A client that may do everything.
    pub fn admin(&self) -> Client {
        self.client(ADMIN)
    }

    /// A client with a token. It belongs to the runtime of the test that asks for it.
    pub fn client(&self, token: &str) -> Client {
        let mut config = Config::new(self.url().parse().expect("a URL"));
        config.root_cert = Some(vec![self.root.clone()]);
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config).expect("the configuration is sound")
    }

    /// The kubeconfig of whoever has `token`, which is in a file beside it, as a kubelet puts it into a
    /// pod: [`Server::renew`] replaces it. `name` is for the two files.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.renew(name, token);
        let path = self.folder.join(format!("{name}.kubeconfig"));
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{
                "name": "it",
                "cluster": {"server": self.url(), "certificate-authority": self.folder.join("root.crt")},
            }],
            "users": [{"name": "it", "user": {"tokenFile": self.token(name)}}],
        });
        fs::write(&path, kubeconfig.to_string()).expect("it is ours");
        path
    }

    /// The kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig("admin", ADMIN)
    }

    /// Replaces the token of a [`Server::kubeconfig`].
    pub fn renew(&self, name: &str, token: &str) {
        fs::write(self.token(name), token).expect("it is ours");
    }

    fn token(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.token"))
    }

    fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.ports.apiserver)
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().expect("nobody panicked")
    }

    fn log(&self) -> String {
        let running = self.running();
        running
            .as_ref()
            .map(|running| running.apiserver.log())
            .unwrap_or_default()
    }

    async fn ready(&self) {
        let client = self.admin();
        let mut look = time::interval(LOOK);
        loop {
            look.tick().await;
            let end = self
                .running()
                .as_mut()
                .and_then(|running| running.apiserver.end());
            if let Some(end) = end {
                panic!("{end}:\n{}", self.log());
            }
            let request = http::Request::get("/readyz").body(Vec::new());
            let request = request.expect("a request");
            if client
                .request_text(request)
                .await
                .is_ok_and(|body| body == "ok")
            {
                return;
            }
        }
    }
}

/// A loopback address that no other process takes: its low 22 bits are this process's id.
fn own_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high & 63, middle, low)
}

fn folder(serial: u16) -> PathBuf {
    let name = format!("warren-apiserver-{}-{serial}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    // The remains of a process that had this id.
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("it is ours");
    }
    fs::create_dir(&folder).expect("the folder for temporary files can be written");
    folder
}

/// Writes keys, certificates and the administrator's token; the certificate to trust, in DER.
fn credentials(folder: &Path, address: Ipv4Addr) -> Vec<u8> {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("it is ours");
    let key = || KeyPair::generate().expect("a key");

    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, key()).expect("a certificate");

    let server_key = key();
    let server = CertificateParams::new([address.to_string()]).expect("an address");
    let server = server.signed_by(&server_key, &root).expect("a certificate");
    write("server.crt", &server.pem());
    write("server.key", &server_key.serialize_pem());

    let accounts = key();
    write("accounts.key", &accounts.serialize_pem());
    write("accounts.pub", &accounts.public_key_pem());

    write("root.crt", &root.pem());
    write(
        "tokens.csv",
        &format!("{ADMIN},admin,admin,system:masters\n"),
    );
    root.der().to_vec()
}

/// A child below a shell that ends it when this process is gone, killed even: the pipe to its
/// standard input closes then. Such a test leaves nothing behind.
#[derive(Debug)]
struct Supervised {
    name: &'static str,
    shell: Child,
    log: PathBuf,
}

/// Ends its last words' process when standard input ends, and removes the folder that is its first.
const SUPERVISE: &str = r#"
folder=$1; shift
exec 3<&0
"$@" 3<&- </dev/null &
child=$!
{ read -r word <&3; [ "$word" != keep ] || touch "$folder/kept"; kill -KILL $child; } &
guard=$!
wait $child
code=$?
kill $guard
# What is there when all is well; when it is not, the logs are wanted.
[ $code -ne 137 ] || [ -e "$folder/kept" ] || rm -rf "$folder"
exit $code
"#;

impl Supervised {
    fn spawn(name: &'static str, command: &Command, folder: &Path) -> Self {
        let _ = fs::remove_file(folder.join("kept"));
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::create(&log).expect("it is ours");
        let shell = Command::new("sh")
            .args(["-c", SUPERVISE, "supervise"])
            .arg(folder)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file)
            .spawn()
            .expect("there is a shell");
        Self { name, shell, log }
    }

    /// Ends it, and keeps the folder.
    fn kill(mut self) {
        if let Some(pipe) = &mut self.shell.stdin {
            pipe.write_all(b"keep\n").expect("the guard reads it");
        }
    }

    /// That it has ended, if it has.
    fn end(&mut self) -> Option<String> {
        let status = self.shell.try_wait().expect("it is our child")?;
        Some(format!("{} ended, {status}", self.name))
    }

    /// The end of what it said.
    fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It ends at once: the child is killed, not asked.
        let _ = self.shell.wait();
    }
}

//! The command as people meet it: the real binary, its sentences, its exit codes, its files.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use warren_config::{PresharedKey, PrivateKey, PublicKey};

#[test]
fn init_makes_a_key_for_its_owner_alone_whatever_the_umask() {
    for umask in ["0000", "0022", "0077", "0777"] {
        let scratch = Scratch::new(&format!("umask-{umask}"));
        let script = format!("umask {umask}; exec {WARREN} init hut --state deep/state");
        let output = scratch.run(Command::new("sh").args(["-c", &script]));
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(
            scratch.mode("deep/state/private.key"),
            0o600,
            "umask {umask}"
        );
        assert_eq!(scratch.mode("deep/state") & 0o077, 0, "umask {umask}");
    }
}

#[test]
fn init_prints_the_block_that_belongs_to_the_key() {
    let scratch = Scratch::new("block");
    let output = scratch.warren(&[
        "init",
        "hut",
        "--state",
        "s",
        "--endpoint",
        "hut.example.org",
        "--endpoint",
        "[2001:db8::7]:1",
        "--address",
        "10.77.0.1",
    ]);
    let key = scratch.private_key("s/private.key").public();
    assert_eq!(
        stdout(&output),
        format!(
            "\n[[node]]\nname = \"hut\"\npublic_key = \"{key}\"\n\
             endpoints = [\"hut.example.org\", \"[2001:db8::7]:1\"]\naddresses = [\"10.77.0.1\"]\n"
        )
    );
    assert_eq!(
        stderr(&output),
        "The private key is in s/private.key, and stays there.\nPaste this into the mesh file:\n"
    );
    let secret = scratch.private_key("s/private.key").to_base64();
    assert!(!stdout(&output).contains(&secret) && !stderr(&output).contains(&secret));
}

#[test]
fn a_cause_is_said_once() {
    let scratch = Scratch::new("causes");
    let error = |args: &[&str]| stderr(&scratch.warren(args));
    scratch.write("file", "");
    assert_eq!(
        error(&["init", "hut", "--state", "file"]),
        "error: file is no directory; the keys are kept in one\n"
    );
    let inside = error(&["init", "hut", "--state", "file/state"]);
    assert_eq!(inside.matches("Not a directory").count(), 1, "{inside}");
    fs::create_dir(scratch.path("s")).expect("made");
    fs::write(scratch.path("s/private.key"), "abc").expect("written");
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(scratch.path("s/private.key"), private).expect("changed");
    let no_key = error(&["init", "hut", "--state", "s"]);
    assert_eq!(no_key.matches("a key in base64").count(), 1, "{no_key}");

    let cluster = |variable: &str, value: &str| {
        let mut command = Command::new(WARREN);
        command.args(["cluster", "status"]).env_clear();
        stderr(&scratch.run(command.env(variable, value)))
    };
    let absent = cluster("KUBECONFIG", "nowhere");
    assert_eq!(absent.matches("No such file").count(), 1, "{absent}");
    let nobody = cluster("HOME", "/nowhere");
    assert!(nobody.contains("--kubeconfig or KUBECONFIG"), "{nobody}");
}

#[test]
fn an_address_with_a_prefix_length_is_answered_with_one_without() {
    let scratch = Scratch::new("address");
    let output = scratch.warren(&["init", "hut", "--address", "10.77.0.1/24"]);
    let expected = "'--address <ADDRESS>': an address without a prefix length, such as 10.77.0.1";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_second_init_loses_nothing() {
    let scratch = Scratch::new("second");
    let first = scratch.warren(&["init", "hut", "--state", "s"]);
    let key = scratch.read("s/private.key");
    let second = scratch.warren(&["init", "hut", "--state", "s"]);
    assert!(second.status.success());
    assert_eq!(scratch.read("s/private.key"), key);
    assert_eq!(stdout(&second), stdout(&first));
    assert!(stderr(&second).starts_with("The private key in s/private.key was there already.\n"));
}

#[test]
fn init_takes_free_addresses_of_a_mesh_and_its_output_can_be_appended() {
    let scratch = Scratch::new("append");
    scratch.write(
        "mesh.toml",
        "[mesh]\nprefixes = [\"10.77.0.0/16\", \"fd77::/48\"]\n",
    );
    for (name, state) in [("hut", "s1"), ("barn", "s2")] {
        let output = scratch.warren(&["init", name, "--state", state, "--mesh", "mesh.toml"]);
        let text = scratch.read("mesh.toml") + &stdout(&output);
        scratch.write("mesh.toml", &text);
    }
    assert!(
        scratch
            .read("mesh.toml")
            .contains("addresses = [\"10.77.0.2\", \"fd77::2\"]")
    );
    let check = scratch.warren(&["check"]);
    assert!(check.status.success());
    assert_eq!(
        stderr(&check),
        "mesh.toml:13:13: warning: node \"barn\", endpoints: neither it nor \"hut\" has an endpoint, \
         so that they cannot reach each other; one of each two needs an endpoint\n"
    );
    // A node that is in the file is told the line that belongs into its block, and nothing is for the file's end.
    let again = scratch.warren(&["init", "hut", "--state", "s3", "--mesh", "mesh.toml"]);
    let key = scratch.private_key("s3/private.key").public();
    assert_eq!(stdout(&again), "");
    let told =
        format!("mesh.toml has node \"hut\"; write this into its block:\npublic_key = \"{key}\"\n");
    assert!(stderr(&again).ends_with(&told), "{}", stderr(&again));
}

#[test]
fn init_refuses_a_directory_in_which_others_may_write() {
    let scratch = Scratch::new("shared");
    fs::create_dir(scratch.path("s")).expect("made");
    fs::set_permissions(scratch.path("s"), fs::Permissions::from_mode(0o777)).expect("changed");
    let output = scratch.warren(&["init", "hut", "--state", "s"]);
    refused(
        &output,
        "error: s is open to others (mode 0777); run `chmod 700 s`\n",
    );
    assert!(!scratch.path("s/private.key").exists());
}

#[test]
fn init_with_a_mesh_file_that_is_wrong_makes_no_key() {
    let scratch = Scratch::new("no-key");
    scratch.write("mesh.toml", "[mesh]\n");
    let output = scratch.warren(&["init", "hut", "--state", "s", "--mesh", "mesh.toml"]);
    refused(
        &output,
        "mesh.toml:1:2: error: [mesh], prefixes: there is none; say what the mesh may carry, as in \
         prefixes = [\"10.77.0.0/16\"]\nerror: mesh.toml is refused for the error above\n",
    );
    assert!(!scratch.path("s").exists());
}

#[test]
fn genkey_pubkey_and_genpsk_speak_the_form_of_wg() {
    let scratch = Scratch::new("keys");
    let key = stdout(&scratch.warren(&["genkey"]));
    assert_eq!(key.len(), 45);
    let private: PrivateKey = key.trim().parse().expect("a private key");
    assert_eq!(private.to_base64(), key.trim(), "clamped when it is made");
    let public = stdout(&scratch.warren_with_input(&["pubkey"], key.as_bytes()));
    assert_eq!(public.trim().parse::<PublicKey>(), Ok(private.public()));
    assert_ne!(stdout(&scratch.warren(&["genkey"])), key);
    let preshared = stdout(&scratch.warren(&["genpsk"]));
    assert!(preshared.trim().parse::<PresharedKey>().is_ok());
    assert_ne!(stdout(&scratch.warren(&["genpsk"])), preshared);
}

#[test]
fn pubkey_of_nonsense_is_a_sentence_that_does_not_repeat_it() {
    let scratch = Scratch::new("nonsense");
    let output = scratch.warren_with_input(&["pubkey"], b"almost-a-secret\n");
    refused(
        &output,
        "error: that is no private key: a key in base64 is 44 characters, the last of them '='\n",
    );
}

#[test]
fn check_says_what_is_right_and_everything_that_is_wrong() {
    let scratch = Scratch::new("check");
    scratch.write("mesh.toml", &mesh());
    let output = scratch.warren(&["check", "mesh.toml"]);
    assert!(output.status.success());
    assert!(
        stdout(&output).starts_with("mesh.toml is right: mesh \"warren\" of 3 nodes, digest "),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).ends_with(", with 1 warning\n"));

    scratch.write(
        "mesh.toml",
        &mesh()
            .replace("10.77.0.2", "10.78.0.2")
            .replace("prefixes", "prefxies"),
    );
    refused(
        &scratch.warren(&["check", "mesh.toml"]),
        "mesh.toml:2:1: error: [mesh]: \"prefxies\" is unknown; did you mean \"prefixes\"?\n\
         mesh.toml:16:1: warning: node \"laptop\", public_key: there is none yet, and nothing is \
         sent to the node until there is; `warren init` on that node prints it\n\
         error: mesh.toml is refused for the error above\n",
    );
    refused(
        &scratch.warren(&["check", "none.toml"]),
        "error: none.toml cannot be read: No such file or directory (os error 2)\n",
    );
    fs::write(scratch.path("mesh.toml"), [0xff, 0xfe]).expect("written");
    refused(
        &scratch.warren(&["check"]),
        "error: mesh.toml is no text; a mesh file is TOML in UTF-8\n",
    );
}

#[test]
fn plan_shows_what_a_file_would_do_and_touches_nothing() {
    let scratch = Scratch::new("plan");
    scratch.write("mesh.toml", &mesh());
    scratch.write_key("s", &private(1));
    let before = scratch.tree();
    let output = scratch.warren(&["plan", "mesh.toml", "--node", "hut", "--state", "s"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (hut, barn) = (private(1).public(), private(2).public());
    assert_eq!(
        stdout(&output),
        format!(
            "+ interface wms-none\n\
             +     public key {hut}\n\
             +     listens on UDP port 51820\n\
             +     MTU 1420\n\
             +     address 10.77.0.1\n\
             + routing table 51880\n\
             +     asked first, by rule 98 for all but mark 0x20\n\
             +     10.77.0.2/32 into the tunnel\n\
             + fence\n\
             +     10.77.0.0/16 through the tunnel or not at all\n\
             +     10.77.0.1/32 may be reached from the tunnel\n\
             + peer barn\n\
             +     public key {barn}\n\
             +     endpoint 192.0.2.8:51820\n\
             +     carries 10.77.0.2/32\n\
             + peer laptop\n\
             +     fenced: nothing is sent to it\n"
        )
    );
    assert_eq!(
        stderr(&output),
        "The difference is to nothing, since no daemon answers.\n\
         mesh.toml:16:1: warning: node \"laptop\", public_key: there is none yet, and nothing is \
         sent to the node until there is; `warren init` on that node prints it\n"
    );
    assert_eq!(scratch.tree(), before);
}

#[test]
fn plan_names_what_keeps_a_daemon_from_taking_the_file() {
    let scratch = Scratch::new("plan-errors");
    scratch.write("mesh.toml", &mesh());
    let plan = ["plan", "--node", "hut", "--state", "s"];
    let output = scratch.warren(&plan);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output)
            .contains("error: there is no private key at s/private.key; `warren init` makes one\n")
    );
    scratch.write_key("s", &private(2));
    let output = scratch.warren(&plan);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(
        "mesh.toml:7:14: error: node \"hut\", public_key: the private key on this node is that of \
         node \"barn\""
    ));
    fs::set_permissions(
        scratch.path("s/private.key"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("changed");
    let output = scratch.warren(&plan);
    assert!(stderr(&output).contains(
        "error: s/private.key is open to others (mode 0644); run `chmod 600 s/private.key`\n"
    ));
    refused(
        &scratch.warren(&["plan", "--node", "bran"]),
        "error: there is no node \"bran\" in the mesh; did you mean \"barn\"?\n",
    );
}

#[test]
fn export_writes_a_file_that_only_its_owner_may_read_and_never_over_another() {
    let scratch = Scratch::new("export");
    scratch.write("mesh.toml", &mesh());
    let export = ["export", "laptop", "--new-key", "--output", "laptop.conf"];
    let output = scratch.warren(&export);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    assert_eq!(scratch.mode("laptop.conf"), 0o600);
    let text = scratch.read("laptop.conf");
    let secret = text
        .lines()
        .find_map(|line| line.strip_prefix("PrivateKey = "))
        .expect("a private key");
    let key = secret
        .parse::<PrivateKey>()
        .expect("a private key")
        .public();
    assert_eq!(
        stderr(&output),
        format!(
            "Write this into the block of node \"laptop\" in mesh.toml:\npublic_key = \"{key}\"\n"
        )
    );
    let (hut, barn) = (private(1).public(), private(2).public());
    let peers = text.split_once("\n# barn\n").expect("peers").1;
    assert_eq!(
        peers,
        format!(
            "[Peer]\nPublicKey = {barn}\nAllowedIPs = 10.77.0.2/32\nEndpoint = 192.0.2.8:51820\n\
             PersistentKeepalive = 25\n\n# hut\n[Peer]\nPublicKey = {hut}\n\
             AllowedIPs = 10.77.0.1/32\nEndpoint = 192.0.2.7:51820\nPersistentKeepalive = 25\n"
        )
    );

    refused(
        &scratch.warren(&export),
        "error: laptop.conf is there already; name a new file\n",
    );
    assert_eq!(scratch.read("laptop.conf"), text);
}

#[test]
fn export_without_a_key_says_where_to_write_it() {
    let scratch = Scratch::new("placeholder");
    scratch.write("mesh.toml", &mesh());
    let output = scratch.warren(&["export", "laptop"]);
    assert!(stdout(&output).contains("PrivateKey = (write here the private key of laptop)\n"));
    assert_eq!(
        stderr(&output),
        "Node \"laptop\" has no public_key in mesh.toml, and nothing is sent to it until it has.\n"
    );
    refused(
        &scratch.warren(&["export", "latop"]),
        "error: there is no node \"latop\" in the mesh; did you mean \"laptop\"?\n",
    );
    scratch.write(
        "mesh.toml",
        &mesh().replace("[mesh]", "[mesh]\npreshared_key_file = \"mesh.psk\""),
    );
    refused(
        &scratch.warren(&["export", "laptop", "--state", "s"]),
        "error: there is no preshared key at s/mesh.psk; `warren genpsk` makes one\n",
    );
}

#[test]
fn what_is_not_understood_has_an_exit_code_of_its_own() {
    let scratch = Scratch::new("usage");
    for args in [
        &["init"][..],
        &["init", "Hut"],
        &["init", "hut", "--endpoint", "hut:0"],
        &["plan"],
        &["frobnicate"],
        &[],
    ] {
        let output = scratch.warren(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!stderr(&output).is_empty());
    }
}

#[test]
fn every_command_has_help_with_an_example_a_page_and_completions() {
    let scratch = Scratch::new("pages");
    fs::create_dir(scratch.path("man")).expect("made");
    assert!(scratch.warren(&["man", "man"]).status.success());
    let scripts: Vec<String> = ["bash", "zsh", "fish"]
        .map(|shell| stdout(&scratch.warren(&["completions", shell])))
        .to_vec();
    let help = stdout(&scratch.warren(&["--help"]));
    let commands: Vec<&str> = (help.lines())
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What is indented further goes on with the description of the line above.
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
        })
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() >= 9, "{help}");
    for command in commands {
        let help = stdout(&scratch.warren(&[command, "--help"]));
        assert!(help.contains("Example"), "{command}");
        assert!(
            help.contains(&format!("  warren {command}"))
                || help.contains(&format!("; warren {command}")),
            "{command}"
        );
        assert!(!scratch.read(&format!("man/warren-{command}.1")).is_empty());
        for script in &scripts {
            assert!(script.contains(command), "{command}");
        }
    }
}

#[test]
fn there_is_no_colour_but_on_a_terminal() {
    let scratch = Scratch::new("colour");
    scratch.write("mesh.toml", "[mesh]\n");
    for output in [
        scratch.warren(&["check"]),
        scratch.warren(&["--help"]),
        scratch.warren(&["frobnicate"]),
    ] {
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let scratch = Scratch::new("pipe");
    let script =
        format!("{WARREN} completions bash | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}");
    let output = scratch.run(Command::new("bash").args(["-c", &script]));
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}

const WARREN: &str = env!("CARGO_BIN_EXE_warren");

/// Two nodes with keys and endpoints, and a laptop without either.
fn mesh() -> String {
    format!(
        "[mesh]\nprefixes = \"10.77.0.0/16\"\ninterface = \"wms-none\"\n\n\
         [[node]]\nname = \"hut\"\npublic_key = \"{}\"\nendpoints = \"192.0.2.7\"\naddresses = \"10.77.0.1\"\n\n\
         [[node]]\nname = \"barn\"\npublic_key = \"{}\"\nendpoints = \"192.0.2.8\"\naddresses = \"10.77.0.2\"\n\
         [[node]]\nname = \"laptop\"\naddresses = \"10.77.0.3\"\n",
        private(1).public(),
        private(2).public(),
    )
}

fn private(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn refused(output: &Output, sentences: &str) {
    assert_eq!(stderr(output), sentences);
    assert_eq!(stdout(output), "");
    assert_eq!(output.status.code(), Some(1));
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A directory of one test's own, in which the command runs; gone when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let name = format!("warren-cli-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    fn warren(&self, args: &[&str]) -> Output {
        self.run(Command::new(WARREN).args(args))
    }

    fn warren_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(WARREN)
            .args(args)
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("written");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    fn run(&self, command: &mut Command) -> Output {
        command
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .output()
            .expect("the command starts")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file is there")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn write_key(&self, state: &str, key: &PrivateKey) {
        fs::create_dir_all(self.path(state)).expect("made");
        let path = self.path(state).join("private.key");
        fs::write(&path, key.to_base64()).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("changed");
    }

    fn private_key(&self, name: &str) -> PrivateKey {
        self.read(name).trim().parse().expect("a private key")
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).expect("it is there").mode() & 0o7777
    }

    /// Every file and when it was changed.
    fn tree(&self) -> Vec<(PathBuf, i64, i64)> {
        let mut files = Vec::new();
        let mut directories = vec![self.0.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("readable") {
                let path = entry.expect("an entry").path();
                let metadata = fs::metadata(&path).expect("metadata");
                files.push((path.clone(), metadata.ctime(), metadata.ctime_nsec()));
                if metadata.is_dir() {
                    directories.push(path);
                }
            }
        }
        files.sort();
        files
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(Path::new(&self.0));
    }
}

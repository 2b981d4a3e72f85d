//! A mesh on its way to strict, and its exceptions: what is latched or closed is closed, and what is not
//! flows as if there were no mesh. Behaviours 38 and 46.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use warren_config::HostConfig;
use warren_netlink::{Host, Options, load_fence};
use warren_tests_fence::{
    Arrivals, FWMARK, Flood, INTERFACE, Namespace, Node, Sniffed, Topology, config_of, open_tun,
    patiently, state_directory,
};

/// What a has reached through the tunnel before, and what not.
const LATCHED: [&str; 2] = ["10.1.2.5", "fd00:1:2::5"];
const UNLATCHED: [&str; 2] = ["10.1.0.2", "fd00:1::2"];

fn nets(texts: &[&str]) -> std::collections::BTreeSet<IpNet> {
    texts
        .iter()
        .map(|text| text.parse().expect("a prefix"))
        .collect()
}

/// Node a, which has reached what is behind b, but not b itself.
fn staged() -> HostConfig {
    let mut config = config_of(Node::A);
    let latched = nets(&["10.1.2.0/24", "fd00:1:2::/64"]);
    config.routes.clone_from(&latched);
    config.fence.mesh = latched;
    config.fence.inward = false;
    config
}

/// Node a, strict, with b itself excepted.
fn excepting() -> HostConfig {
    let mut config = config_of(Node::A);
    config.fence.open = nets(&["10.1.0.2/32", "fd00:1::2/128"]);
    config.routes = nets(&["10.1.2.0/24", "fd00:1:2::/64"]);
    config
}

fn converge(at: &Namespace, config: &HostConfig, options: Options) {
    let (directory, config) = (state_directory(at), config.clone());
    at.enter(move || {
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        let report = host.converge(&config).expect("a sound configuration");
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        assert!(report.rules_stand && report.ahead.is_empty());
    });
}

fn open(at: &Namespace) {
    at.enter(|| drop(open_tun(INTERFACE).expect("a TUN")));
}

/// Network where b, which knows no mesh, has the addresses of its own; a is as `config` says.
fn with(config: &HostConfig) -> Topology {
    let topology = Topology::new();
    topology.b.ip("addr add 10.1.0.2/32 dev lo");
    topology.b.ip("addr add fd00:1::2/128 dev lo");
    open(&topology.a);
    converge(&topology.a, config, Options::default());
    topology
}

/// From a and from behind it to what is latched and what is not.
fn floods(topology: &Topology, tied: bool) -> Vec<Flood> {
    let targets = [LATCHED, UNLATCHED].concat();
    vec![
        Flood::start(&topology.a, &targets, FWMARK, tied),
        Flood::start(&topology.lan, &targets, FWMARK, tied),
    ]
}

fn go_on(floods: &[Flood]) {
    let before: Vec<u64> = floods.iter().map(Flood::attempts).collect();
    patiently("traffic flows", Duration::from_secs(20), || {
        (floods.iter().zip(&before)).all(|(flood, before)| flood.attempts() > before + 800)
    });
}

fn stop(floods: impl IntoIterator<Item = Flood>) {
    for flood in floods {
        flood.stop();
    }
}

/// Frames that a sent to one of these addresses, or in which it asks for one.
fn leaks_to<'a>(seen: &'a Sniffed, addresses: &[&str]) -> Vec<&'a String> {
    let to = |leak: &&String| {
        let ends = |address: &&str| leak.ends_with(&format!("{address}]"));
        leak.starts_with("a: ") && addresses.iter().any(ends)
    };
    seen.leaks.keys().filter(to).collect()
}

#[test]
fn what_was_never_reached_flows_in_the_clear_and_nothing_of_what_was() {
    let topology = with(&staged());
    let at_b = Arrivals::start(&topology.b);
    let sniffer = topology.sniffer();
    let floods = floods(&topology, true);
    go_on(&floods);
    let a = &topology.a;

    // Its key is gone: no route into the tunnel any more.
    let mut keyless = staged();
    keyless.routes.clear();
    converge(a, &keyless, Options::default());
    go_on(&floods);
    // Nobody keeps anything up, and the TUN goes down and away.
    a.ip("link set warren0 down");
    go_on(&floods);
    a.ip("link del warren0");
    go_on(&floods);
    // One fence alone.
    converge(a, &keyless, Options::default());
    for family in ["-4", "-6"] {
        a.run_script(&format!(
            "for p in 96 97 98 99; do while ip {family} rule del priority $p; do :; done; done 2>&-; true"
        ));
    }
    go_on(&floods);
    stop(floods);

    let seen = sniffer.stop();
    assert_eq!(leaks_to(&seen, &LATCHED), [""; 0]);
    for address in UNLATCHED {
        let leaks = leaks_to(&seen, &[address]);
        // UDP, TCP, ICMP, each from a and from behind it.
        assert!(leaks.len() >= 6, "{address}: {leaks:?}");
    }
    assert!(at_b.stop()["plaintext of the mesh"] > 500);
}

#[test]
fn the_rules_alone_close_what_was_reached() {
    let topology = with(&staged());
    topology.a.run("nft flush ruleset");
    let sniffer = topology.sniffer();
    let floods = floods(&topology, false);
    go_on(&floods);
    topology.a.ip("link del warren0");
    go_on(&floods);
    stop(floods);
    let seen = sniffer.stop();
    assert_eq!(leaks_to(&seen, &LATCHED), [""; 0]);
    assert!(leaks_to(&seen, &UNLATCHED).len() >= 6);
}

#[test]
fn whoever_does_not_encrypt_yet_is_heard_and_answered() {
    let topology = with(&staged());
    let (at_a, behind_a) = (Arrivals::start(&topology.a), Arrivals::start(&topology.lan));
    let b = &topology.b;
    let floods = [
        Flood::start_as(b, "10.1.0.2", &["10.1.0.1", "10.1.1.5"]),
        Flood::start_as(b, "fd00:1::2", &["fd00:1::1", "fd00:1:1::5"]),
        // From what a encrypts to: b may not know yet that it does.
        Flood::start_as(b, "10.1.2.5", &["10.1.0.1", "10.1.1.5"]),
    ];
    patiently("traffic", Duration::from_secs(10), || {
        floods.iter().all(|flood| flood.attempts() > 300)
    });
    stop(floods);
    let said = |arrivals: Arrivals| arrivals.stop().into_keys().collect::<Vec<_>>();
    assert_eq!(
        said(at_a),
        [
            "10.1.0.2 to 10.1.0.1",
            "10.1.2.5 to 10.1.0.1",
            "fd00:1::2 to fd00:1::1"
        ]
    );
    assert_eq!(
        said(behind_a),
        [
            "10.1.0.2 to 10.1.1.5",
            "10.1.2.5 to 10.1.1.5",
            "fd00:1::2 to fd00:1:1::5"
        ]
    );
    assert!(b.succeeds("ping -c 1 -W 2 -I 10.1.0.2 10.1.0.1"));
    assert!(b.succeeds("ping -c 1 -W 2 -I fd00:1::2 fd00:1::1"));
}

#[test]
fn becoming_strict_never_opens_what_was_reached() {
    let topology = with(&staged());
    let sniffer = topology.sniffer();
    let floods = floods(&topology, true);
    let a = &topology.a;
    for _ in 0..5 {
        converge(a, &config_of(Node::A), Options::default());
        go_on(&floods);
        converge(a, &staged(), Options::default());
    }
    converge(a, &config_of(Node::A), Options::default());
    let strict = topology.sniffer();
    go_on(&floods);
    let strict = strict.stop();
    assert!(strict.frames == 0 || strict.leaks.is_empty(), "{strict:?}");
    stop(floods);
    assert_eq!(leaks_to(&sniffer.stop(), &LATCHED), [""; 0]);
}

#[test]
fn an_exception_speaks_in_the_clear_both_ways_and_nobody_else() {
    let topology = with(&excepting());
    let (at_a, behind_a) = (Arrivals::start(&topology.a), Arrivals::start(&topology.lan));
    let at_b = Arrivals::start(&topology.b);
    let sniffer = topology.sniffer();
    let floods = floods(&topology, true);
    let b = &topology.b;
    let from_b = [
        Flood::start_as(b, "10.1.0.2", &["10.1.0.1", "10.1.1.5"]),
        Flood::start_as(b, "fd00:1::2", &["fd00:1::1", "fd00:1:1::5"]),
        Flood::start_as(b, "10.1.2.5", &["10.1.0.1", "10.1.1.5"]),
        Flood::start_as(b, "fd00:1:2::5", &["fd00:1::1", "fd00:1:1::5"]),
    ];
    go_on(&floods);
    topology.a.ip("link del warren0");
    go_on(&floods);
    stop(floods.into_iter().chain(from_b));

    let seen = sniffer.stop();
    assert_eq!(leaks_to(&seen, &LATCHED), [""; 0]);
    for address in UNLATCHED {
        assert!(
            leaks_to(&seen, &[address]).len() >= 6,
            "{address}: {seen:?}"
        );
    }
    assert!(at_b.stop()["plaintext of the mesh"] > 500);
    let said = |arrived: BTreeMap<String, u64>| -> Vec<String> {
        let of_b = |said: &String| said.starts_with("10.1.") || said.starts_with("fd00:");
        arrived.into_keys().filter(of_b).collect()
    };
    assert_eq!(
        said(at_a.stop()),
        ["10.1.0.2 to 10.1.0.1", "fd00:1::2 to fd00:1::1"]
    );
    assert_eq!(
        said(behind_a.stop()),
        ["10.1.0.2 to 10.1.1.5", "fd00:1::2 to fd00:1:1::5"]
    );
}

#[test]
fn after_a_reboot_stages_and_exceptions_are_as_they_were() {
    for (config, closed, flows) in [
        (staged(), LATCHED, UNLATCHED),
        (excepting(), LATCHED, UNLATCHED),
    ] {
        let old = with(&config);
        let directory = state_directory(&old.a);
        let topology = Topology::with_boot(move |name, namespace| {
            let directory = directory.clone();
            if name == "a" {
                namespace.enter(move || load_fence(&directory).expect("the fence is loaded"));
            }
        });
        let sniffer = topology.sniffer();
        let floods = floods(&topology, true);
        go_on(&floods);
        stop(floods);
        let seen = sniffer.stop();
        assert_eq!(leaks_to(&seen, &closed), [""; 0]);
        assert!(leaks_to(&seen, &flows).len() >= 4, "{seen:?}");
    }
}

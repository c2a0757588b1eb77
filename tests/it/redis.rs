//! The store in Redis: real servers, with TLS, a password, a replica, as a cluster, behind Sentinel; shared by taps; and
//! what happens when it goes away.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::github::Resource;
use crate::support::{Client, GitHub, Tap, has, missing};

/// A redis-server of our own.
struct Redis {
    port: u16,
    dir: tempfile::TempDir,
    child: Option<Child>,
    arguments: Vec<String>,
}

fn free_port() -> u16 {
    // Below the ephemeral ports, so that no connection takes it meanwhile; cluster nodes take this and 10,000 more.
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + u16::try_from(std::process::id() % 80).unwrap() * 100 + step % 100;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

impl Redis {
    fn start(arguments: &[&str]) -> Redis {
        let arguments = arguments.iter().map(|a| a.to_string()).collect();
        let mut redis = Redis { port: free_port(), dir: tempfile::tempdir().unwrap(), child: None, arguments };
        redis.launch();
        redis
    }

    fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        let tls = self.arguments.iter().any(|a| a == "--tls-port");
        command
            .args(["--port", if tls { "0" } else { &port }, "--save", "", "--bind", "127.0.0.1"])
            .arg("--dir")
            .arg(self.dir.path());
        let arguments = self.arguments.iter().map(|a| if a == "PORT" { port.clone() } else { a.clone() });
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn stop_or_go(&self, signal: rustix::process::Signal) {
        let pid = self.child.as_ref().unwrap().id();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }

    fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        let output = command.args(["-p", &self.port.to_string()]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_missing(test: &str) -> bool {
    !has("redis-server", "--version") && missing(test, "redis-server")
}

async fn tap(github: &GitHub, store: &str, more: &[&str]) -> Tap {
    let mut arguments = vec![format!("--store={store}")];
    arguments.extend(more.iter().map(|s| s.to_string()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let tap = Tap::start(github, &arguments).await;
    until_ready(&tap, true).await;
    tap
}

/// Waits until the store works, or does not.
async fn until_ready(tap: &Tap, ok: bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let wanted = format!("\"ok\":{ok}");
    loop {
        let ready = tap.get_admin("/readyz").await;
        if ready.contains(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{ready}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn get(tap: &Tap, target: &str, token: &str) -> (u16, String, i64) {
    let reply = Client::connect(tap).await.get(target, token, &[]).await;
    (reply.status, reply.x_cache().to_owned(), reply.json()["id"].as_i64().unwrap_or(-1))
}

/// What is written behind reaches the server.
async fn until_stored(redis: &Redis, keys: usize) {
    for _ in 0..200 {
        if redis.cli(&["DBSIZE"]).trim().parse::<usize>().is_ok_and(|n| n >= keys) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} keys are stored", redis.cli(&["DBSIZE"]));
}

fn hit(id: i64) -> (u16, String, i64) {
    (200, "ONLINE_HIT".into(), id)
}

#[tokio::test]
async fn what_one_tap_fetched_another_revalidates_for_free() {
    if is_missing("what_one_tap_fetched_another_revalidates_for_free") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    github.set("/repos/o/r", json!({ "id": 1 }));
    let large = Resource {
        body: format!("{{\"id\":2,\"x\":\"{}\"}}", "y".repeat(2 << 20)).into_bytes(),
        ..Resource::default()
    };
    github.put("/large", large);
    let (one, two) = (tap(&github, &redis.url(), &[]).await, tap(&github, &redis.url(), &[]).await);
    assert_eq!(get(&one, "/repos/o/r", "t").await.1, "ONLINE_MISS");
    assert_eq!(get(&one, "/large", "t").await.1, "ONLINE_MISS");
    until_stored(&redis, 3).await;
    github.arrived();
    // Another tap, another credential: the tag is computed from the body.
    assert_eq!(get(&two, "/repos/o/r", "other").await, hit(1));
    assert_eq!(get(&two, "/large", "other").await, hit(2));
    assert!(github.arrived().iter().all(|a| !a.charged));
    // It changes, one learns it, the other knows it a moment later.
    github.set("/repos/o/r", json!({ "id": 3 }));
    assert_eq!(get(&one, "/repos/o/r", "t").await, (200, "ONLINE_MISS".into(), 3));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    github.arrived();
    assert_eq!(get(&two, "/repos/o/r", "other").await, hit(3));
    assert!(github.arrived().iter().all(|a| !a.charged));
    // No credential is in there.
    let all = redis.cli(&["--raw", "HGETALL", redis.cli(&["KEYS", "*"]).lines().next().unwrap_or_default()]);
    assert!(!all.contains("token t") && !all.contains("other"));
    let listed = String::from_utf8(two.cli(&["cache", "list"]).await.stdout).unwrap();
    assert!(listed.contains("https://api.github.com/repos/o/r") && listed.contains("/large"), "{listed}");
    two.cli(&["cache", "purge"]).await;
    assert_eq!(redis.cli(&["KEYS", "ghtap:1:{*}"]).trim(), "");
}

#[tokio::test]
async fn taps_that_share_a_secret_know_each_others_credentials() {
    if is_missing("taps_that_share_a_secret_know_each_others_credentials") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    github.set("/repos/o/r", json!({ "id": 1 }));
    let secret = redis.dir.path().join("secret");
    std::fs::write(&secret, [7; 32]).unwrap();
    let secret = format!("--secret-file={}", secret.display());
    let more = [&*secret, "--expected-etag=off"];
    let (one, two) = (tap(&github, &redis.url(), &more).await, tap(&github, &redis.url(), &more).await);
    get(&one, "/repos/o/r", "t").await;
    until_stored(&redis, 1).await;
    assert_eq!(get(&two, "/repos/o/r", "t").await, hit(1));
    github.misbehave("*", crate::support::Misbehaviour::Status(503, "x"));
    assert_eq!(get(&two, "/repos/o/r", "t").await.1, "API_ERROR_HIT");
}

#[tokio::test]
async fn entries_expire_and_what_was_tampered_with_is_not_served() {
    if is_missing("entries_expire_and_what_was_tampered_with_is_not_served") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    for n in 1..=3 {
        github.set(&format!("/x/{n}"), json!({ "id": n }));
    }
    let secret = redis.dir.path().join("secret");
    std::fs::write(&secret, [7; 32]).unwrap();
    // With a tag that both were given, GitHub would confirm whatever body lies there.
    let secret = format!("--secret-file={}", secret.display());
    let one = tap(&github, &redis.url(), &["--store-ttl=100s", &secret, "--expected-etag=off"]).await;
    for n in 1..=3 {
        get(&one, &format!("/x/{n}"), "t").await;
    }
    until_stored(&redis, 3).await;
    let keys: Vec<String> = redis.cli(&["KEYS", "*"]).lines().map(str::to_owned).collect();
    for key in &keys {
        let ttl: i64 = redis.cli(&["TTL", key]).trim().parse().unwrap();
        assert!((90..=100).contains(&ttl), "{ttl}");
    }
    // A record cut short; a body that is another; a record under another's key.
    redis.cli(&["HSET", &keys[0], "e", "nonsense"]);
    let script = "for _,f in ipairs(redis.call('HKEYS',KEYS[1])) do if f ~= 'e' then redis.call('HSET',KEYS[1],f,'{\"id\":666}') end end";
    redis.cli(&["EVAL", script, "1", &keys[1]]);
    let swap = "local o=redis.call('HGETALL',KEYS[1]); redis.call('DEL',KEYS[2]); redis.call('HSET',KEYS[2],unpack(o))";
    redis.cli(&["EVAL", swap, "2", &keys[1], &keys[2]]);
    let two = tap(&github, &redis.url(), &[&secret, "--expected-etag=off"]).await;
    for n in 1..=3 {
        let (status, x_cache, id) = get(&two, &format!("/x/{n}"), "t").await;
        assert_eq!((status, id), (200, n), "{x_cache}");
    }
    assert!(two.metric("ghtap_store_corrupt_total").await >= 2.0);
}

#[tokio::test]
async fn a_password_tls_and_a_replica_to_read_from() {
    if is_missing("a_password_tls_and_a_replica_to_read_from") {
        return;
    }
    let github = GitHub::start_for(&["api.github.com", "localhost"]).await;
    github.set("/repos/o/r", json!({ "id": 1 }));
    let (cert, key) = github.leaf();
    let (cert, key, ca) = (cert.display().to_string(), key.display().to_string(), github.ca.display().to_string());
    let tls = [
        "--tls-port",
        "PORT",
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "s3cret p@ss",
    ];
    let secured = Redis::start(&tls);
    let url = format!("rediss://:s3cret%20p%40ss@localhost:{}", secured.port);
    let store_ca = format!("--store-ca={ca}");
    let one = tap(&github, &url, &[&store_ca]).await;
    let two = tap(&github, &url, &[&store_ca]).await;
    get(&one, "/repos/o/r", "t").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(get(&two, "/repos/o/r", "other").await, hit(1));
    assert!(!one.log().contains("s3cret") && !one.get_admin("/readyz").await.contains("s3cret"));
    // A certificate that is not trusted, a wrong password: no store, and everything goes on.
    for (url, more) in [(url.clone(), None), (format!("rediss://:wrong@localhost:{}", secured.port), Some(&*store_ca))]
    {
        let mut arguments = vec![format!("--store={url}")];
        arguments.extend(more.map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let without = Tap::start(&github, &arguments).await;
        assert_eq!(get(&without, "/repos/o/r", "t").await.0, 200);
        until_ready(&without, false).await;
    }
    // A replica: reads go there. By github-mirror's names.
    let primary = Redis::start(&["--requirepass", "pw"]);
    let from = format!("127.0.0.1 {}", primary.port);
    let replica = Redis::start(&["--replicaof", &from, "--masterauth", "pw", "--requirepass", "pw"]);
    let deadline = Instant::now() + Duration::from_secs(15);
    while !replica.cli(&["-a", "pw", "INFO", "replication"]).contains("master_link_status:up") {
        assert!(Instant::now() < deadline, "the replica does not follow");
        std::thread::sleep(Duration::from_millis(100));
    }
    let reader = format!("redis://:pw@127.0.0.1:{}", replica.port);
    let port = primary.port.to_string();
    let arguments = vec![
        format!("--resolve=api.github.com:443:{}", github.address),
        format!("--upstream-ca={ca}"),
        format!("--store-reader={reader}"),
    ];
    let variables =
        [("CACHE_TYPE", "redis"), ("PRIMARY_ENDPOINT", "127.0.0.1"), ("REDIS_PORT", &*port), ("REDIS_PASSWORD", "pw")];
    let mirror = Tap::with_variables(arguments, &variables).await;
    until_ready(&mirror, true).await;
    let before = commands(&replica);
    get(&mirror, "/repos/o/r", "t").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    get(&mirror, "/repos/o/none", "t").await;
    assert!(commands(&replica) > before, "it reads from the replica");
    assert!(primary.cli(&["-a", "pw", "DBSIZE"]).trim().ends_with('1'));
    // Without its replica it reads from the primary.
    drop(replica);
    let again = Tap::with_variables(mirror_arguments(&github, &reader), &variables).await;
    for _ in 0..100 {
        if get(&again, "/repos/o/r", "another").await == hit(1) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not read from the primary");
}

fn mirror_arguments(github: &GitHub, reader: &str) -> Vec<String> {
    vec![
        format!("--resolve=api.github.com:443:{}", github.address),
        format!("--upstream-ca={}", github.ca.display()),
        format!("--store-reader={reader}"),
    ]
}

fn commands(redis: &Redis) -> u64 {
    let stats = redis.cli(&["-a", "pw", "INFO", "commandstats"]);
    let calls = |name: &str| {
        let line = stats.lines().find(|l| l.starts_with(&format!("cmdstat_{name}:calls=")))?;
        line.split(['=', ',']).nth(1)?.parse::<u64>().ok()
    };
    calls("hgetall").unwrap_or(0) + calls("hget").unwrap_or(0)
}

#[tokio::test]
async fn a_cluster_of_three_nodes() {
    if is_missing("a_cluster_of_three_nodes") {
        return;
    }
    let github = GitHub::start().await;
    let nodes: Vec<Redis> =
        (0..3).map(|_| Redis::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"])).collect();
    let addresses: Vec<String> = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port)).collect();
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    let all_well = || nodes.iter().all(|n| n.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    wait_for("the nodes agree", all_well).await;
    let url = format!("redis-cluster://{}", addresses.join(","));
    let (one, two) = (tap(&github, &url, &[]).await, tap(&github, &url, &[]).await);
    for n in 0..30 {
        github.set(&format!("/x/{n}"), json!({ "id": n }));
        assert_eq!(get(&one, &format!("/x/{n}"), "t").await.2, n);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let sizes: Vec<usize> = nodes.iter().map(|n| n.cli(&["DBSIZE"]).trim().parse().unwrap()).collect();
    assert!(sizes.iter().all(|s| *s > 0) && sizes.iter().sum::<usize>() == 30, "{sizes:?}");
    github.arrived();
    for n in 0..30 {
        assert_eq!(get(&two, &format!("/x/{n}"), "other").await, hit(n));
    }
    assert!(github.arrived().iter().all(|a| !a.charged));
    let listed = String::from_utf8(two.cli(&["cache", "list"]).await.stdout).unwrap();
    assert_eq!(listed.lines().filter(|l| l.contains("/x/")).count(), 30, "{listed}");
}

#[tokio::test]
async fn sentinel_tells_where_the_master_is_and_when_another_takes_over() {
    if is_missing("sentinel_tells_where_the_master_is_and_when_another_takes_over") {
        return;
    }
    let github = GitHub::start().await;
    for n in 0..2 {
        github.set(&format!("/x/{n}"), json!({ "id": n }));
    }
    let mut master = Redis::start(&[]);
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    let mut sentinel =
        Redis { port: free_port(), dir: tempfile::tempdir().unwrap(), child: None, arguments: Vec::new() };
    let config = sentinel.dir.path().join("sentinel.conf");
    let text = format!(
        "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
        sentinel.port,
        sentinel.dir.path().display(),
        master.port
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&config).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
    sentinel.child = Some(command.spawn().unwrap());
    wait_for("the sentinel knows the replica", || {
        sentinel.cli(&["SENTINEL", "REPLICAS", "main"]).contains(&replica.port.to_string())
    })
    .await;
    let one = tap(&github, &format!("redis-sentinel://127.0.0.1:{}/main", sentinel.port), &[]).await;
    get(&one, "/x/0", "t").await;
    until_stored(&master, 1).await;
    until_stored(&replica, 1).await;
    master.kill();
    wait_for("the replica takes over", || replica.cli(&["ROLE"]).starts_with("master")).await;
    until_ready(&one, true).await;
    assert_eq!(get(&one, "/x/1", "t").await.0, 200);
    until_stored(&replica, 2).await;
    let two = tap(&github, &format!("redis-sentinel://127.0.0.1:{}/main", sentinel.port), &[]).await;
    assert_eq!((get(&two, "/x/0", "other").await, get(&two, "/x/1", "other").await), (hit(0), hit(1)));
}

async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: in vain");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn killed_hung_full_and_restarted_under_load() {
    if is_missing("killed_hung_full_and_restarted_under_load") {
        return;
    }
    let (github, mut redis) = (GitHub::start().await, Redis::start(&[]));
    for n in 0..50 {
        github.set(&format!("/x/{n}"), json!({ "id": n }));
    }
    // A small memory, so that the server is asked.
    let one = tap(&github, &redis.url(), &["--store-memory-bytes=1MiB"]).await;
    let load = |seconds: f32| {
        let mut tasks = Vec::new();
        for worker in 0..4_i64 {
            let (proxy, ca) = (one.proxy, one.ca());
            tasks.push(tokio::spawn(async move {
                let mut client = Client::to(proxy, &ca).await;
                let (begun, mut done) = (Instant::now(), 0);
                while begun.elapsed().as_secs_f32() < seconds {
                    let n = (done + worker * 13) % 50;
                    let reply = client.get(&format!("/x/{n}"), "t", &[]).await;
                    assert_eq!((reply.status, reply.json()["id"].as_i64()), (200, Some(n)), "{reply:?}");
                    done += 1;
                }
                done
            }));
        }
        tasks
    };
    let all = async |tasks: Vec<tokio::task::JoinHandle<i64>>| {
        let mut done = 0;
        for task in tasks {
            done += task.await.expect("no request fails");
        }
        done
    };
    // Killed in the midst of it.
    let tasks = load(2.0);
    tokio::time::sleep(Duration::from_millis(700)).await;
    redis.kill();
    assert!(all(tasks).await > 50);
    until_ready(&one, false).await;
    assert_eq!(one.metric("ghtap_store_up").await, 0.0);
    // Who wants it emptied is told that it is not.
    let purged = one.cli(&["cache", "purge"]).await;
    let said = String::from_utf8(purged.stderr).unwrap();
    assert!(!purged.status.success() && said.contains("the store cannot be asked"), "{said}");
    // Back, and empty.
    redis.launch();
    until_ready(&one, true).await;
    all(load(1.0)).await;
    wait_for("what is asked for is stored again", || redis.cli(&["DBSIZE"]).trim().parse::<u64>().unwrap_or(0) > 0)
        .await;
    // Hung: it takes connections and says nothing.
    let tasks = load(2.0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.stop_or_go(rustix::process::Signal::STOP);
    assert!(all(tasks).await > 50, "nobody waits for it");
    until_ready(&one, false).await;
    redis.stop_or_go(rustix::process::Signal::CONT);
    until_ready(&one, true).await;
    // Full: what is there is read, what is new is not stored.
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for n in 100..110 {
        github.set(&format!("/x/{n}"), json!({ "id": n }));
        assert_eq!(get(&one, &format!("/x/{n}"), "t").await.0, 200);
    }
    until_ready(&one, false).await;
    assert!(one.metric("ghtap_store_errors_total").await >= 1.0);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    until_ready(&one, true).await;
}

#[tokio::test]
async fn two_taps_writing_the_same_keys_at_once_corrupt_nothing() {
    if is_missing("two_taps_writing_the_same_keys_at_once_corrupt_nothing") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    let taps = [tap(&github, &redis.url(), &[]).await, tap(&github, &redis.url(), &[]).await];
    for round in 0..10 {
        for n in 0..5 {
            github.set(&format!("/x/{n}"), json!({ "id": round * 10 + n }));
        }
        let mut tasks = Vec::new();
        for tap in &taps {
            for worker in 0..3 {
                let (proxy, ca) = (tap.proxy, tap.ca());
                tasks.push(tokio::spawn(async move {
                    let mut client = Client::to(proxy, &ca).await;
                    for n in 0..5 {
                        let reply = client.get(&format!("/x/{n}"), &format!("t{worker}"), &[]).await;
                        assert_eq!((reply.status, reply.json()["id"].as_i64()), (200, Some(round * 10 + n)));
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for tap in &taps {
        assert_eq!(tap.metric("ghtap_store_corrupt_total").await, 0.0);
    }
    let fresh = tap(&github, &redis.url(), &[]).await;
    for n in 0..5 {
        assert_eq!(get(&fresh, &format!("/x/{n}"), "new").await, hit(90 + n));
    }
}

#[tokio::test]
async fn what_one_tap_revoked_stays_so_whoever_writes_the_record() {
    if is_missing("what_one_tap_revoked_stays_so_whoever_writes_the_record") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    github.set("/repos/o/r", json!({ "id": 1 }));
    let secret = redis.dir.path().join("secret");
    std::fs::write(&secret, [7; 32]).unwrap();
    let secret = format!("--secret-file={}", secret.display());
    let more = [&*secret, "--offline-after=0"];
    let (one, two) = (tap(&github, &redis.url(), &more).await, tap(&github, &redis.url(), &more).await);
    get(&one, "/repos/o/r", "a").await;
    until_stored(&redis, 1).await;
    get(&two, "/repos/o/r", "a").await;
    // `a` loses its right at one tap; the other, which does not know yet, writes the record for `b`.
    let mut resource = Resource { body: b"{\"id\":1}".to_vec(), ..Resource::default() };
    resource.by_credential.insert("token a".into(), Vec::new());
    github.put("/repos/o/r", resource);
    assert_eq!(get(&one, "/repos/o/r", "a").await.0, 404);
    assert_eq!(get(&two, "/repos/o/r", "b").await.0, 200);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    github.misbehave("*", crate::support::Misbehaviour::Status(503, "x"));
    for tap in [&one, &two] {
        assert_eq!(get(tap, "/repos/o/r", "b").await.1, "API_ERROR_HIT");
        assert_eq!(get(tap, "/repos/o/r", "a").await.0, 503);
    }
}

#[tokio::test]
async fn a_revocation_that_redis_refuses_holds() {
    if is_missing("a_revocation_that_redis_refuses_holds") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    github.set("/repos/o/r", json!({ "id": 1 }));
    let one = tap(&github, &redis.url(), &["--offline-after=0"]).await;
    get(&one, "/repos/o/r", "a").await;
    until_stored(&redis, 1).await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    github.remove("/repos/o/r");
    assert_eq!(get(&one, "/repos/o/r", "a").await.0, 404);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(get(&one, "/repos/o/r", "a").await.0, 404);
    github.misbehave("*", crate::support::Misbehaviour::Status(503, "x"));
    assert_eq!(get(&one, "/repos/o/r", "a").await.0, 503);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    until_ready(&one, true).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(get(&one, "/repos/o/r", "a").await.0, 503);
}

#[tokio::test]
async fn a_server_that_refuses_writes_is_read() {
    if is_missing("a_server_that_refuses_writes_is_read") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    for n in 0..20 {
        github.set(&format!("/x/{n}"), json!({ "id": n }));
    }
    let one = tap(&github, &redis.url(), &[]).await;
    for n in 0..20 {
        get(&one, &format!("/x/{n}"), "t").await;
    }
    until_stored(&redis, 20).await;
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let two = tap(&github, &redis.url(), &[]).await;
    for n in 0..20 {
        assert_eq!(get(&two, &format!("/x/{n}"), "other").await, hit(n));
    }
    assert!(two.metric("ghtap_store_errors_total").await >= 1.0);
}

#[tokio::test]
async fn what_is_used_does_not_expire() {
    if is_missing("what_is_used_does_not_expire") {
        return;
    }
    let (github, redis) = (GitHub::start().await, Redis::start(&[]));
    github.set("/small", json!({ "id": 1 }));
    let large =
        Resource { body: format!("{{\"id\":2,\"x\":\"{}\"}}", "y".repeat(2 << 20)).into(), ..Resource::default() };
    github.put("/large", large);
    let one = tap(&github, &redis.url(), &["--store-ttl=4s"]).await;
    for target in ["/small", "/large"] {
        get(&one, target, "t").await;
    }
    until_stored(&redis, 3).await;
    for _ in 0..7 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((get(&one, "/small", "t").await, get(&one, "/large", "t").await), (hit(1), hit(2)));
    }
}

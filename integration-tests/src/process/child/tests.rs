//! Children start, are signalled, end, and never outlive their owner.

use super::*;
use crate::process::Scratch;
use std::os::unix::process::ExitStatusExt as _;

const LIMIT: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Spawn {
    Spawn::new("sh").args(["-c", script])
}

fn alive(pid: u32) -> bool {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), None).is_ok()
}

#[tokio::test]
async fn output_and_status_are_kept() {
    let scratch = Scratch::new("child").expect("a directory");
    let child = shell("echo out; echo err >&2; echo $VALUE; exit 3")
        .env("VALUE", "seen")
        .log(scratch.path().join("log"))
        .spawn()
        .expect("sh starts");
    let status = child.wait(LIMIT).await.expect("it ends");
    assert_eq!(status.code(), Some(3));
    assert_eq!(child.log_tail(2), "err\nseen");
    child.terminate().expect("signalling an ended child is fine");
}

#[tokio::test]
async fn a_missing_program_is_an_error() {
    let error = Spawn::new("no-such-program-anywhere")
        .spawn()
        .expect_err("there is none");
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[tokio::test]
async fn stop_kills_what_ignores_sigterm() {
    let child = shell("trap '' TERM; while :; do sleep 0.05; done")
        .spawn()
        .expect("sh starts");
    let error = child.wait(Duration::from_millis(50)).await.expect_err("it runs on");
    assert!(matches!(error, Error::StillRunning { .. }));
    let status = child.stop(Duration::from_millis(100)).await.expect("it ends");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
}

#[tokio::test]
async fn a_paused_child_stands_still() {
    let scratch = Scratch::new("pause").expect("a directory");
    let log = scratch.path().join("log");
    let child = shell("while :; do echo tick; sleep 0.01; done")
        .log(&log)
        .spawn()
        .expect("sh starts");
    let size = || fs::metadata(&log).map(|meta| meta.len()).unwrap_or_default();
    eventually("the first tick", LIMIT, || async { size() > 0 })
        .await
        .expect("it ticks");
    child.pause().expect("paused");
    let paused = || async {
        let before = size();
        tokio::time::sleep(Duration::from_millis(100)).await;
        (size() == before).then_some(before)
    };
    let before = eventually("no more ticks", LIMIT, paused)
        .await
        .expect("it stands still");
    child.resume().expect("resumed");
    eventually("the next tick", LIMIT, || async { size() > before })
        .await
        .expect("it ticks again");
}

#[tokio::test]
async fn drop_ends_the_whole_group() {
    let scratch = Scratch::new("group").expect("a directory");
    let child = shell("sleep 300 & echo $!; wait")
        .log(scratch.path().join("log"))
        .spawn()
        .expect("sh starts");
    let grandchild: u32 = eventually("the grandchild", LIMIT, || async { child.log_tail(1).parse::<u32>() })
        .await
        .expect("its pid is printed");
    assert_eq!(child.children(), vec![grandchild]);
    drop(child);
    eventually("the grandchild to be gone", LIMIT, || async {
        !alive_and_not_a_zombie(grandchild)
    })
    .await
    .expect("it is killed");
}

/// Nobody may be there to reap an orphan at once (a container without init), and a zombie is as good as gone.
fn alive_and_not_a_zombie(pid: u32) -> bool {
    let zombie = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    });
    alive(pid) && !zombie
}

#[tokio::test]
async fn a_child_outlives_the_thread_that_started_it() {
    let child = thread::spawn(|| shell("sleep 300").spawn().expect("sh starts"))
        .join()
        .expect("the thread ends");
    let error = child.wait(Duration::from_millis(50)).await.expect_err("it runs on");
    assert!(matches!(error, Error::StillRunning { .. }));
}

#[tokio::test]
async fn cpu_and_memory_are_read() {
    let child = shell("while :; do :; done").spawn().expect("sh starts");
    if !Path::new("/proc/self/stat").exists() {
        return;
    }
    eventually("some CPU time", LIMIT, || async {
        child.cpu_time() > Some(Duration::from_millis(50))
    })
    .await
    .expect("it burns CPU");
    assert!(child.resident_bytes().expect("it is running") > 100_000);
}

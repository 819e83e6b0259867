//! SIGINT and SIGTERM: the first asks for a drain, the second leaves at once.
//!
//! Invariant: the second signal is obeyed even while every worker of the process is busy or stuck.
//! Deliberately absent: the drain's deadline; that belongs to `TaskGroup::finish`.

use std::io;
use std::thread;

use futures::{Stream, StreamExt};
use thiserror::Error;
use tokio::signal::unix::{Signal as Source, SignalKind, signal};
use tracing::info;

use crate::exit::Code;
use crate::tasks::Stop;

/// Signals that end a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// What `kill` and orchestrators send.
    Terminate,
}

impl Signal {
    /// The code of a process that did not drain because of this signal.
    pub fn code(self) -> Code {
        match self {
            Signal::Interrupt => Code::Interrupted,
            Signal::Terminate => Code::Terminated,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Signal::Interrupt => "SIGINT",
            Signal::Terminate => "SIGTERM",
        }
    }
}

/// The process cannot hear signals.
#[derive(Debug, Error)]
#[error("cannot listen for SIGINT and SIGTERM")]
pub struct NotListening {
    #[from]
    source: io::Error,
}

/// Listens from now on, on a thread of its own, for as long as the process lives.
///
/// **Errors**: the operating system gives no thread or no signal handler; the process should not start.
pub fn listen(stop: Stop) -> Result<(), NotListening> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (interrupt, terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let signals =
        futures::stream::select(arrivals(interrupt, Signal::Interrupt), arrivals(terminate, Signal::Terminate));
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let last = runtime.block_on(drain_then_leave(Box::pin(signals), &stop));
        if let Some(signal) = last {
            std::process::exit(signal.code().into());
        }
    })?;
    Ok(())
}

fn arrivals(source: Source, kind: Signal) -> impl Stream<Item = Signal> + Send {
    futures::stream::unfold(source, move |mut source| async move { source.recv().await.map(|()| (kind, source)) })
}

/// Requests a stop at the first signal and returns the second, at which the process must leave at once.
/// None when no more signals can come.
pub async fn drain_then_leave(mut signals: impl Stream<Item = Signal> + Unpin, stop: &Stop) -> Option<Signal> {
    let first = signals.next().await?;
    info!(signal = first.name(), "stopping: finishing what was begun; signal again to leave at once");
    stop.request();
    let second = signals.next().await?;
    info!(signal = second.name(), "leaving at once");
    Some(second)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use futures::FutureExt;
    use futures::channel::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_leaves_with_its_code() {
        let (sender, signals) = mpsc::unbounded();
        let stop = Stop::new();
        let mut listening = Box::pin(drain_then_leave(signals, &stop));
        assert!((&mut listening).now_or_never().is_none());
        assert!(!stop.is_stopping());
        sender.unbounded_send(Signal::Terminate).expect("listening");
        assert!((&mut listening).now_or_never().is_none());
        assert!(stop.is_stopping());
        sender.unbounded_send(Signal::Interrupt).expect("listening");
        let last = listening.now_or_never().flatten().expect("left");
        assert_eq!(i32::from(last.code()), 130);
        assert_eq!(i32::from(Signal::Terminate.code()), 143);
    }

    #[tokio::test]
    async fn the_first_signal_still_only_drains_when_something_else_asked_to_stop_before() {
        let (sender, signals) = mpsc::unbounded();
        let stop = Stop::new();
        stop.request();
        let mut listening = Box::pin(drain_then_leave(signals, &stop));
        sender.unbounded_send(Signal::Interrupt).expect("listening");
        assert!((&mut listening).now_or_never().is_none());
    }

    /// Set for the process that [`real_signals_drain_and_then_end_a_stuck_process`] starts.
    const CHILD: &str = "TAILWATER_TEST_CHILD";

    #[test]
    #[ignore = "the process that the next test starts; alone it does nothing"]
    fn a_process_that_never_drains() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let stop = Stop::new();
        listen(stop.clone()).expect("listening");
        println!("\nlistening");
        runtime.block_on(stop.stopped());
        println!("\ndraining");
        // The only worker of the process is now stuck for good.
        loop {
            thread::park();
        }
    }

    #[test]
    fn real_signals_drain_and_then_end_a_stuck_process() {
        for (first, second, code) in [("-TERM", "-INT", 130), ("-INT", "-TERM", 143)] {
            let program = std::env::current_exe().expect("this test's program");
            let mut child = Command::new(program)
                .args(["--exact", "signal::tests::a_process_that_never_drains", "--ignored", "--nocapture"])
                .env(CHILD, "1")
                .stdout(Stdio::piped())
                .spawn()
                .expect("a child");
            let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
            assert!(lines.any(|line| line == "listening"));
            signal_to(&child, first);
            assert!(lines.any(|line| line == "draining"));
            signal_to(&child, second);
            assert_eq!(child.wait().expect("ended").code(), Some(code));
        }
    }

    fn signal_to(child: &Child, signal: &str) {
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    #[tokio::test]
    async fn without_further_signals_nobody_leaves() {
        let stop = Stop::new();
        let signals = futures::stream::iter([Signal::Interrupt]);
        assert_eq!(drain_then_leave(signals, &stop).await, None);
        assert!(stop.is_stopping());
    }
}

//! What the person at the terminal sees while the cluster comes up.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

pub struct Progress {
    began: Instant,
    colour: bool,
}

impl Progress {
    pub fn new(began: Instant) -> Self {
        Self { began, colour: std::io::stderr().is_terminal() }
    }

    fn line(&self, mark: &str, colour: &str, text: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        if self.colour {
            eprintln!("  \x1b[{colour}m{mark}\x1b[0m {text:<28} \x1b[2m{seconds:>6.2} s\x1b[0m");
        } else {
            eprintln!("  {mark} {text:<28} {seconds:>6.2} s");
        }
    }

    /// A part is up.
    pub fn done(&self, part: &str) {
        self.line("✓", "32", part);
    }

    pub fn waiting(&self, what: &str) {
        self.line("…", "33", &format!("waiting for {what}"));
    }

    pub fn note(&self, text: &str) {
        self.line("!", "33", text);
    }

    /// Everything is up: what to type next.
    pub fn finish(&self, kubeconfig: &Path, control_plane_only: bool) {
        self.line("✓", "32", "the cluster is ready");
        eprintln!("\n  export KUBECONFIG={}", kubeconfig.display());
        eprintln!("  kubectl get {}", if control_plane_only { "namespaces" } else { "nodes,pods -A" });
        eprintln!("\n  Ctrl-C stops it; the same command brings it back as it was.\n");
    }

    pub fn stopping(&self) {
        eprintln!("  stopping");
    }
}

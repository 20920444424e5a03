//! A client attached to a container: its streams, and what it has not taken yet.
//!
//! Nothing here waits: what a client does not take stays pending, and whoever reads the container's output holds back
//! while anything is pending.

use std::fs::File;
use std::io::Write;
use std::os::fd::RawFd;

/// An attached client: its streams, and output it has not taken yet.
pub struct Attached {
    /// The connection that it came by.
    pub connection: RawFd,
    /// What it sends.
    pub stdin: Option<File>,
    /// Where it wants standard output and error.
    pub outputs: [Option<File>; 2],
    /// What it has not taken yet of each.
    pub pending: [Vec<u8>; 2],
    /// Nothing more will come of each: it is closed once it has been taken.
    pub ended: [bool; 2],
    /// It has said all it had to say, and goes once it has taken what is pending.
    pub leaves: bool,
}

impl Attached {
    /// Output for it, sent as far as it takes it.
    pub fn give(&mut self, stream: usize, data: &[u8]) {
        if self.outputs[stream].is_some() {
            self.pending[stream].extend_from_slice(data);
            self.flush(stream);
        }
    }

    /// Sends on what it has not taken yet; one that is gone is let go.
    pub fn flush(&mut self, stream: usize) {
        let Some(output) = &mut self.outputs[stream] else { return };
        if write_some(output, &mut self.pending[stream]).is_err() {
            self.outputs[stream] = None;
            self.pending[stream] = Vec::new();
        }
        if self.ended[stream] && self.pending[stream].is_empty() {
            self.outputs[stream] = None;
        }
    }

    /// A stream has ended.
    pub fn end(&mut self, stream: usize) {
        self.ended[stream] = true;
        self.flush(stream);
    }
}

/// Writes as much as goes without waiting.
pub fn write_some(file: &mut File, data: &mut Vec<u8>) -> std::io::Result<()> {
    while !data.is_empty() {
        match file.write(data) {
            Ok(n) => drop(data.drain(..n)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    *data = Vec::new();
    Ok(())
}

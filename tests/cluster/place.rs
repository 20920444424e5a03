//! Places in a cluster's network where packets are sent from and answered: pods, nodes, the control plane's, outside.
//!
//! A place is a network namespace; servers and clients in it are this process's own sockets, so that pods need nothing in
//! their images and each answer says who gave it and whom he saw.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nauplius::fabric::within;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use serde_json::Value;

use super::process::processes;

/// For one exchange that is to succeed; one that is not, is given less.
pub const PATIENCE: Duration = Duration::from_secs(3);
pub const IMPATIENCE: Duration = Duration::from_millis(400);
/// Asked so often, each of three endpoints chosen at random has answered, but for once in 10⁸ times.
const ASKED: usize = 48;
/// More than any link's packet, so that whole ones of each side are needed.
const LARGE_BYTES: usize = 64 << 10;
/// Of a captured packet: the longest headers of IP and TCP that are looked at.
const HEADERS_BYTES: usize = 80;
/// TCP's number in an IP header.
const TCP: u8 = 6;
/// Flags in a TCP header.
const SYN: u8 = 2;
const ACK: u8 = 16;

#[derive(Clone, Debug)]
pub struct Place {
    pub name: String,
    namespace: PathBuf,
}

/// What a server said: its own name, and the address it saw.
pub type Answer = (String, IpAddr);

impl Place {
    pub fn named(name: &str, namespace: &str) -> Place {
        Place { name: name.into(), namespace: Path::new("/run/netns").join(namespace) }
    }

    /// A pod, by the processes in its control group.
    pub fn of_pod(pod: &Value) -> Result<Place> {
        let (name, uid) = (pod["metadata"]["name"].as_str().unwrap_or_default(), pod["metadata"]["uid"].as_str());
        let group = format!("/pod{}", uid.context("no uid")?);
        let inside = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&group))
        };
        let pid = processes().into_iter().map(|(pid, _)| pid).find(inside);
        let namespace = format!("/proc/{}/ns/net", pid.with_context(|| format!("pod {name} has no process"))?);
        Ok(Place { name: name.into(), namespace: namespace.into() })
    }

    /// `ip` with these words, here.
    pub fn ip(&self, words: &str) -> Result<String> {
        let output = within(&self.namespace, || Command::new("ip").args(words.split(' ')).output())?;
        ensure!(output.status.success(), "ip {words} in {}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Answers on a port for as long as this process lives: whose answer it is and whom he sees; what TCP clients send
    /// first is read to its end.
    pub fn serve(&self, port: u16) -> Result<()> {
        let (tcp, udp) =
            within(&self.namespace, || Ok((TcpListener::bind(("::", port))?, UdpSocket::bind(("::", port))?)))?;
        let name = self.name.clone();
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let Ok(peer) = stream.peer_addr() else { continue };
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let read = stream.read_to_end(&mut Vec::new()).unwrap_or_default();
                let padding = " ".repeat(read);
                // Who has gone away again needs no answer.
                let _ = write!(stream, "{name} {}{padding}", peer.ip().to_canonical());
            }
        });
        let name = self.name.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{name} {}", peer.ip().to_canonical()).as_bytes(), peer);
            }
        });
        Ok(())
    }

    /// One exchange over TCP from here, of so many bytes each way.
    pub fn ask(&self, to: SocketAddr, bytes: usize, patience: Duration) -> Result<Answer> {
        let text = within(&self.namespace, || {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(&vec![b'x'; bytes])?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        answer(&text.with_context(|| format!("{} → {to}", self.name))?)
    }

    /// Everybody who answers, with whom he saw.
    pub fn everybody(&self, to: SocketAddr) -> Result<BTreeSet<Answer>> {
        (0..ASKED).map(|_| self.ask(to, 0, PATIENCE)).collect()
    }

    /// As much as needs the largest packets, both ways.
    pub fn ask_much(&self, to: SocketAddr) -> Result<Answer> {
        self.ask(to, LARGE_BYTES, PATIENCE)
    }

    /// Whether an address refuses, or keeps silent.
    pub fn refused(&self, to: SocketAddr) -> Result<bool> {
        match self.ask(to, 0, IMPATIENCE) {
            Ok(answer) => anyhow::bail!("{} → {to} is answered by {answer:?}", self.name),
            Err(error) => {
                let kind = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                Ok(kind == Some(std::io::ErrorKind::ConnectionRefused))
            }
        }
    }

    /// A UDP client that keeps its socket, and so is one connection to the kernel.
    pub fn udp(&self, family_of: IpAddr) -> Result<UdpSocket> {
        let any = if family_of.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0u16; 8]) };
        let socket = within(&self.namespace, || UdpSocket::bind((any, 0)))?;
        socket.set_read_timeout(Some(IMPATIENCE))?;
        Ok(socket)
    }

    /// The head and body of an HTTP answer.
    pub fn get(&self, to: SocketAddr) -> Result<String> {
        Ok(within(&self.namespace, || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?)
    }
}

/// One datagram and its answer.
pub fn exchange(socket: &UdpSocket, to: SocketAddr) -> Result<Answer> {
    exchange_of(socket, to, 1)
}

/// One datagram of so many bytes, and its answer.
pub fn exchange_of(socket: &UdpSocket, to: SocketAddr, bytes: usize) -> Result<Answer> {
    socket.send_to(&vec![b'?'; bytes], to)?;
    let mut buffer = [0; 128];
    let (length, _) = socket.recv_from(&mut buffer)?;
    answer(&String::from_utf8_lossy(&buffer[..length]))
}

fn answer(text: &str) -> Result<Answer> {
    let mut words = text.split_whitespace();
    let (name, peer) = (words.next().context("no answer")?, words.next().context("half an answer")?);
    Ok((name.into(), peer.parse()?))
}

/// A connection that stays: it was answered by somebody once, and is by nobody else as long as it lives.
pub struct Talk {
    stream: BufReader<TcpStream>,
    pub with: String,
}

impl Place {
    /// Answers whatever comes on a connection with this place's name, one byte after the other.
    pub fn serve_talks(&self, port: u16) -> Result<()> {
        let listener = within(&self.namespace, || TcpListener::bind(("::", port)))?;
        let name = format!("{}\n", self.name);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let name = name.clone();
                std::thread::spawn(move || {
                    while stream.read_exact(&mut [0]).is_ok() && stream.write_all(name.as_bytes()).is_ok() {}
                });
            }
        });
        Ok(())
    }

    fn talk(&self, to: SocketAddr) -> Result<Talk> {
        let stream = within(&self.namespace, || TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut talk = Talk { stream: BufReader::new(stream), with: String::new() };
        talk.with = talk.answer()?;
        Ok(talk)
    }

    /// One connection with each of so many who answer at an address.
    pub fn talk_with_all(&self, to: SocketAddr, count: usize) -> Result<Vec<Talk>> {
        let mut talks: Vec<Talk> = Vec::new();
        for _ in 0..ASKED {
            let talk = self.talk(to)?;
            if talks.iter().all(|known| known.with != talk.with) {
                talks.push(talk);
            }
        }
        ensure!(talks.len() == count, "{} → {to}: {} of {count} answer", self.name, talks.len());
        Ok(talks)
    }
}

impl Talk {
    fn answer(&mut self) -> Result<String> {
        self.stream.get_mut().write_all(b"?")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_string())
    }

    /// The same connection still leads to the same server.
    pub fn goes_on(&mut self) -> Result<()> {
        let answer = self.answer().with_context(|| format!("the connection with {}", self.with))?;
        ensure!(answer == self.with, "the connection with {} is answered by {answer:?}", self.with);
        Ok(())
    }
}

/// Every packet that passes a place's links from when it began, as on the wire.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn begin(place: &Place) -> Result<Capture> {
        let socket = within(&place.namespace, || {
            let all = SockProtocol::EthAll;
            Ok(socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, all)?)
        })?;
        Ok(Capture(socket))
    }

    /// Whom the packets that open connections to a TCP port were from.
    pub fn sources(&self, port: u16) -> Result<BTreeSet<IpAddr>> {
        let mut sources = BTreeSet::new();
        let mut packet = [0; HEADERS_BYTES];
        loop {
            match recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Ok(length) => sources.extend(source(&packet[..length.min(HEADERS_BYTES)], port)),
                Err(Errno::EAGAIN) => return Ok(sources),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The source of an IP packet, if it opens a connection to this TCP port.
fn source(packet: &[u8], port: u16) -> Option<IpAddr> {
    let (source, rest) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&TCP) => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (IpAddr::from(source), usize::from(packet[0] & 15) * 4)
        }
        6 if packet.get(6) == Some(&TCP) => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (IpAddr::from(source), 40)
        }
        _ => return None,
    };
    let opens = packet.get(rest + 13)? & (SYN | ACK) == SYN;
    (opens && packet.get(rest + 2..rest + 4)? == port.to_be_bytes()).then_some(source)
}

/// A machine on the nodes' network that is no part of the cluster; it goes with this value.
pub struct Outside {
    pub place: Place,
    namespace: String,
    fabric: Place,
}

impl Outside {
    pub fn new(cluster: &str, addresses: &[&str], gateways: &[&str]) -> Result<Outside> {
        let namespace = format!("{cluster}-outside");
        let run = |words: &str| -> Result<()> {
            let output = Command::new("ip").args(words.split(' ')).output()?;
            ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(&format!("netns add {namespace}"))?;
        let made = Outside {
            place: Place::named("outside", &namespace),
            namespace: namespace.clone(),
            fabric: Place::named("fabric", cluster),
        };
        made.fabric.ip(&format!("link add outside type veth peer name eth0 netns {namespace}"))?;
        made.fabric.ip("link set outside master fabric up")?;
        made.place.ip("link set eth0 up")?;
        for address in addresses {
            let more = if address.contains(':') { " nodad" } else { "" };
            made.place.ip(&format!("addr add {address} dev eth0{more}"))?;
        }
        for gateway in gateways {
            made.place.ip(&format!("route add default via {gateway}"))?;
        }
        Ok(made)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.fabric.ip("link del outside");
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

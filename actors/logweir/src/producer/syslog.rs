//! Syslog listeners: TCP, UDP and TLS.
//!
//! - **Syslog has no acknowledgments.** A sender considers a message delivered when its kernel has it. TCP and TLS are
//!   read only as fast as the journal accepts what was read, so that a slow journal fills the sender's queue and not
//!   our memory. When this process is killed, the contents of both kernels' buffers and one body per connection are
//!   lost. At SIGTERM what was read is stored before the connections are closed. UDP may lose anything at any time;
//!   what is dropped here, by the kernel or by our own bound, is counted. Senders that need acknowledgments should use
//!   HTTP.
//! - Frames are records and are never split; the parser interprets them.
//! - The sender's address is the host of messages without one, and an attribute of all messages.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use logweir_engine::drain::Phase;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::framing::Framing;
use super::multiline::push_record;
use super::source_client::{SourceBatch, SourceClient, discard};
use super::stream::{BODY_BYTES, LINGER, READ_BYTES, StreamSource};
use crate::config;
use logweir_formats::Defaults;
use logweir_tls as tls;

/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay after a failed accept (out of descriptors, for example).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Maximum size of a datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Receive buffer requested from the kernel for datagrams; it may grant less.
const KERNEL_BYTES: usize = 4 << 20;

/// How often the datagrams that the kernel dropped are counted.
const DROPS_EVERY: Duration = Duration::from_secs(1);

/// The bound sockets.
pub struct Listeners {
    tcp: Option<std::net::TcpListener>,
    udp: Option<std::net::UdpSocket>,
    tls: Option<(std::net::TcpListener, TlsAcceptor)>,
}

/// Binds the configured addresses.
///
/// # Errors
/// The key whose address cannot be bound, and why.
pub fn bind(config: &config::Syslog) -> Result<Listeners, String> {
    let wrong = |key: &str, address: SocketAddr, error: io::Error| {
        format!("{key}: cannot listen on {address}: {error}; choose another address or stop the process that uses it")
    };
    let tcp = |key, address: Option<SocketAddr>| -> Result<_, String> {
        let Some(address) = address else { return Ok(None) };
        let listener = std::net::TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        listener.map(Some).map_err(|error| wrong(key, address, error))
    };
    let udp = config.udp_listen.map(|address| {
        let socket = std::net::UdpSocket::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(KERNEL_BYTES);
            Ok(socket)
        });
        socket.map_err(|error| wrong("syslog.udp_listen", address, error))
    });
    let tls = match tcp("syslog.tls_listen", config.tls_listen)? {
        None => None,
        Some(listener) => {
            let files =
                config.tls().ok_or("syslog.tls_listen requires syslog.tls_cert_file and syslog.tls_key_file")?;
            let server = tls::server_config("syslog", files).map_err(|error| format!("syslog.tls_listen: {error}"))?;
            Some((listener, TlsAcceptor::from(Arc::new(server))))
        }
    };
    Ok(Listeners { tcp: tcp("syslog.tcp_listen", config.tcp_listen)?, udp: udp.transpose()?, tls })
}

/// Upper bound of the memory used by the listeners, in bytes.
#[must_use]
pub fn memory_bytes_max(config: &config::Syslog) -> usize {
    // What is read, the body being built, and the one in flight.
    let connection = 3 * (config.message_bytes_max + READ_BYTES) + 2 * BODY_BYTES;
    let any_tcp = config.tcp_listen.is_some() || config.tls_listen.is_some();
    let tcp = if any_tcp { config.connections_max * connection } else { 0 };
    // Queued, and once more in bodies in flight.
    tcp + if config.udp_listen.is_some() { 2 * config.udp_buffer_bytes + DATAGRAM_BYTES } else { 0 }
}

/// Serves the listeners until the drain; completes when everything that was read is submitted.
///
/// # Panics
/// If called outside of a Tokio runtime.
pub async fn serve(listeners: Listeners, source_client: &SourceClient, config: &config::Syslog) {
    let server = Server {
        source_client: source_client.clone(),
        config: config.clone(),
        permits: Arc::new(Semaphore::new(config.connections_max)),
    };
    let registered = "the listener is a socket that does not block";
    let tcp = async {
        let Some(listener) = listeners.tcp else { return };
        server.accept(TcpListener::from_std(listener).expect(registered), None).await;
    };
    let tls = async {
        let Some((listener, acceptor)) = listeners.tls else { return };
        server.accept(TcpListener::from_std(listener).expect(registered), Some(acceptor)).await;
    };
    let udp = async {
        let Some(socket) = listeners.udp else { return };
        datagrams(UdpSocket::from_std(socket).expect(registered), &server).await;
    };
    tokio::join!(tcp, tls, udp);
    // Every connection has seen the drain too, and ends when what it has read is stored.
    let all = u32::try_from(server.config.connections_max).unwrap_or(u32::MAX);
    let _ = server.permits.acquire_many(all).await;
}

#[derive(Clone)]
struct Server {
    source_client: SourceClient,
    config: config::Syslog,
    permits: Arc<Semaphore>,
}

impl Server {
    async fn accept(&self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let component = if tls.is_some() { "syslog_tls" } else { "syslog_tcp" };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.source_client.drain.reached(Phase::Draining) => return,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    network_error(component, "accept");
                    tracing::warn!(component, %error, "cannot accept a connection: retrying");
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                metrics::counter!("logweir_rejected_requests_total", "reason" => "syslog_connections_max").increment(1);
                continue; // dropping the socket closes it
            };
            let (server, tls) = (self.clone(), tls.clone());
            actix_rt::spawn(async move {
                match tls {
                    None => server.connection(socket, peer, component, permit).await,
                    Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
                        Ok(Ok(socket)) => server.connection(socket, peer, component, permit).await,
                        Ok(Err(error)) => {
                            network_error(component, "handshake");
                            tracing::warn!(component, %peer, %error, "TLS handshake with a sender failed");
                        }
                        Err(_) => network_error(component, "handshake_timeout"),
                    },
                }
            });
        }
    }

    async fn connection(
        &self,
        socket: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        component: &'static str,
        _permit: OwnedSemaphorePermit,
    ) {
        metrics::gauge!("logweir_syslog_connections", "component" => component).increment(1.0);
        let source = StreamSource {
            source_client: self.source_client.clone(),
            component,
            framing: Framing::Syslog,
            record_bytes_max: self.config.message_bytes_max,
            multiline: None,
            idle_timeout: Some(Duration::from_millis(self.config.idle_timeout_ms)),
            defaults: sender_defaults(peer.ip(), Some(peer.port())),
        };
        if let Err(error) = source.run(socket).await {
            network_error(component, "read");
            tracing::debug!(component, %peer, %error, "a sender's connection failed");
        }
        metrics::gauge!("logweir_syslog_connections", "component" => component).decrement(1.0);
    }
}

fn network_error(component: &'static str, kind: &'static str) {
    metrics::counter!("logweir_network_errors_total", "component" => component, "kind" => kind).increment(1);
}

/// Defaults for messages of a sender: its address.
fn sender_defaults(ip: IpAddr, port: Option<u16>) -> Defaults {
    let address = ip.to_canonical().to_string();
    let mut attributes = format!("\"network.peer.address\":\"{address}\"");
    if let Some(port) = port {
        attributes.push_str(&format!(",\"network.peer.port\":{port}"));
    }
    Defaults { host: Some(address.into()), attributes: Some(attributes.into()), ..Defaults::default() }
}

/// Datagrams that wait to be submitted.
struct DatagramQueue {
    queue: Mutex<(VecDeque<(IpAddr, Bytes)>, usize)>,
    arrived: Notify,
    bytes_max: usize,
}

impl DatagramQueue {
    /// Queues the datagram; returns false if the queue is full.
    fn push(&self, peer: IpAddr, datagram: &[u8]) -> bool {
        let mut queue = self.queue.lock().expect("no panic while it is held");
        let (datagrams, bytes) = &mut *queue;
        let size = datagram.len() + size_of::<(IpAddr, Bytes)>();
        if *bytes + size > self.bytes_max {
            return false;
        }
        *bytes += size;
        datagrams.push_back((peer, Bytes::copy_from_slice(datagram)));
        drop(queue);
        self.arrived.notify_one();
        true
    }

    fn take(&self) -> VecDeque<(IpAddr, Bytes)> {
        let mut queue = self.queue.lock().expect("no panic while it is held");
        queue.1 = 0;
        std::mem::take(&mut queue.0)
    }
}

/// Reads datagrams as fast as they arrive, and submits them as fast as they are accepted.
async fn datagrams(socket: UdpSocket, server: &Server) {
    let (source_client, bytes_max) = (&server.source_client, server.config.udp_buffer_bytes);
    let queue = DatagramQueue { queue: Mutex::default(), arrived: Notify::new(), bytes_max };
    let stream = source_client.intake.new_stream();
    let receiving = async {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((len, _)) if len > server.config.message_bytes_max => discard(UDP, "line_too_long", 1),
                Ok((len, peer)) if !queue.push(peer.ip(), &buffer[..len]) => discard(UDP, "udp_buffer_full", 1),
                Ok(_) => {}
                Err(error) => {
                    network_error(UDP, "read");
                    tracing::warn!(%error, "cannot read a datagram: retrying");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    };
    let mut drops = KernelDrops::default();
    let submitting = async {
        let mut count_drops = interval(DROPS_EVERY);
        count_drops.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while source_client.drain.phase() < Phase::Draining {
            tokio::select! {
                () = queue.arrived.notified() => {
                    sleep(LINGER).await;
                    submit(source_client, stream, queue.take()).await;
                }
                _ = count_drops.tick() => drops.count(&socket),
                () = source_client.drain.reached(Phase::Draining) => {}
            }
        }
    };
    tokio::select! {
        () = receiving => {}
        () = submitting => {}
    }
    drops.count(&socket);
    // What arrived between the last iteration and the end.
    submit(source_client, stream, queue.take()).await;
}

const UDP: &str = "syslog_udp";

/// Submits one body per sender.
async fn submit(source_client: &SourceClient, stream: u64, datagrams: VecDeque<(IpAddr, Bytes)>) {
    let mut senders: Vec<(IpAddr, Vec<Vec<u8>>)> = Vec::new();
    for (peer, datagram) in datagrams {
        let index = senders.iter().position(|(sender, _)| *sender == peer).unwrap_or_else(|| {
            senders.push((peer, vec![Vec::new()]));
            senders.len() - 1
        });
        let bodies = &mut senders[index].1;
        if bodies.last().is_none_or(|body| body.len() >= BODY_BYTES) {
            bodies.push(Vec::new());
        }
        if let Some(body) = bodies.last_mut() {
            let end = datagram.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |at| at + 1);
            push_record(body, &datagram[..end]);
        }
    }
    let batches = senders.into_iter().flat_map(|(peer, bodies)| {
        let defaults = sender_defaults(peer, None);
        bodies.into_iter().filter(|body| !body.is_empty()).map(move |body| SourceBatch {
            stream,
            body: body.into(),
            defaults: defaults.clone(),
            dedup_key: None,
        })
    });
    join_all(batches.map(|source_batch| async move {
        if let Err(rejection) = source_client.deliver(&source_batch).await {
            tracing::warn!(
                reason = rejection.reason,
                messages = source_batch.records(),
                "datagrams were read but not stored"
            );
            discard(UDP, rejection.reason, source_batch.records());
        }
    }))
    .await;
}

/// Counts the datagrams that the kernel drops because they are not read in time.
#[derive(Default)]
struct KernelDrops(u64);

impl KernelDrops {
    fn count(&mut self, socket: &UdpSocket) {
        let now = dropped_by_kernel(socket).unwrap_or(self.0);
        if now > self.0 {
            discard(UDP, "udp_kernel_buffer_full", now - self.0);
        }
        self.0 = now.max(self.0);
    }
}

/// Datagrams that the kernel has dropped because they were not read in time; `None` if it does not report them.
///
/// The socket option SO_MEMINFO has the same number, but needs unsafe code: neither rustix 1.1 nor socket2 0.6 has it.
/// With few sockets the table costs 109 µs instead of 1 µs, once per [`DROPS_EVERY`].
fn dropped_by_kernel(socket: &UdpSocket) -> Option<u64> {
    let table = if socket.local_addr().ok()?.is_ipv4() { "/proc/self/net/udp" } else { "/proc/self/net/udp6" };
    let inode = rustix::fs::fstat(socket).ok()?.st_ino;
    let table = std::fs::read_to_string(table).ok()?;
    // sl, local and remote address, st, queues, timer, retransmits, uid, timeout, inode, ref, pointer, drops
    let mut sockets = table.lines().map(|line| line.split_ascii_whitespace());
    let mut columns = sockets.find_map(|mut columns| (columns.nth(9)?.parse() == Ok(inode)).then_some(columns))?;
    columns.nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_that_the_kernel_drops_are_counted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(address).await.unwrap();
            socket2::SockRef::from(&socket).set_recv_buffer_size(4096).unwrap();
            assert_eq!(dropped_by_kernel(&socket), Some(0), "{address}");
            let sender = std::net::UdpSocket::bind(address).unwrap();
            for _ in 0..100 {
                sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
            }
            let mut received = 0;
            socket.readable().await.unwrap();
            while socket.try_recv(&mut [0; 1000]).is_ok() {
                received += 1;
            }
            assert!(received < 100, "the buffer holds fewer");
            assert_eq!(dropped_by_kernel(&socket), Some(100 - received), "{address}");
        }
    }
}

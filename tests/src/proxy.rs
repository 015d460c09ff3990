//! A TCP proxy between logweir and a server that simulates network faults.
//!
//! It understands enough of PostgreSQL's protocol to detect a COMMIT: every message after the startup message has a
//! type byte and a length. For other protocols, and with TLS, use only the faults by mode.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::PATIENCE;
use crate::process::free_addr;

/// How bytes are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Normally.
    Pass,
    /// New connections are refused; open ones stay open.
    Refuse,
    /// Half-open: connections (including new ones) stay open, but nothing is forwarded. They stay silent forever, even
    /// after the mode changes; connections made under another mode are not affected.
    Swallow,
    /// Each read is delayed by this time.
    Delay(Duration),
    /// Limited to this many bytes per second, in each direction of each connection.
    Throttle(u32),
}

/// What is lost when a connection is cut at a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtCommit {
    /// The server never sees the COMMIT.
    RequestLost,
    /// The server commits, but the response is lost.
    ReplyLost,
    /// The client's side is cut at once; the COMMIT reaches the server this much later, after the client has already
    /// checked for it.
    Late(Duration),
    /// As [`AtCommit::Late`], when [`Proxy::release_commits`] is called; only on connections of lanes.
    Held,
}

/// A proxy; stopped on drop.
pub struct Proxy {
    listen: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    state: Mutex<State>,
    changed: Condvar,
    commits_cut: AtomicU32,
}

struct State {
    mode: Mode,
    at_commit: Option<(AtCommit, u32)>,
    /// Number of calls of [`Proxy::release_commits`].
    released: u32,
    open: Vec<(TcpStream, TcpStream)>,
    /// Number of connections so far; identifies each connection.
    made: u64,
    /// Connections up to this number stay silent forever.
    silent_up_to: u64,
    closed: bool,
}

/// Client socket, server socket, and the connection's number.
type Link = (TcpStream, TcpStream, u64);

impl Proxy {
    /// Starts a proxy to `target` on a free loopback port.
    ///
    /// # Errors
    /// If no port can be bound.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        // Not one of the kernel's choice: while connections are refused, a client could be given it.
        Self::start_at(free_addr(), target)
    }

    /// Starts a proxy to `target` that listens on `addr`.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn start_at(addr: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        let listen = listener.local_addr()?;
        let state = State {
            mode: Mode::Pass,
            at_commit: None,
            released: 0,
            open: Vec::new(),
            made: 0,
            silent_up_to: 0,
            closed: false,
        };
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            state: Mutex::new(state),
            changed: Condvar::new(),
            commits_cut: AtomicU32::new(0),
        });
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(listener, listen)
        });
        Ok(Self { listen, shared, acceptor: Some(acceptor) })
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.listen
    }

    /// Forwards new connections to another server, as an address does that moves.
    pub fn move_to(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Sets the mode.
    pub fn set(&self, mode: Mode) {
        let mut state = self.shared.lock();
        if state.mode == Mode::Swallow {
            state.silent_up_to = state.made;
        }
        state.mode = mode;
        self.shared.changed.notify_all();
    }

    /// Closes all open connections.
    pub fn cut(&self) {
        for (client, server) in self.shared.lock().open.drain(..) {
            close(&client, &server);
        }
    }

    /// Cuts the connections of the next `times` COMMITs; none if it is 0.
    pub fn cut_at_commit(&self, what: AtCommit, times: u32) {
        self.shared.lock().at_commit = (times > 0).then_some((what, times));
    }

    /// Forwards the COMMITs that are held.
    pub fn release_commits(&self) {
        self.shared.lock().released += 1;
        self.shared.changed.notify_all();
    }

    /// Number of connections cut at a COMMIT so far.
    #[must_use]
    pub fn commits_cut(&self) -> u32 {
        self.shared.commits_cut.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        self.cut();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Interval at which a thread that waits for the network checks for a changed mode.
const LOOK: Duration = Duration::from_millis(5);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self) -> SocketAddr {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: TcpListener, listen: SocketAddr) {
        let mut listener = Some(listener);
        loop {
            let state = self.lock();
            if state.closed {
                return;
            }
            let refuse = state.mode == Mode::Refuse;
            drop(state);
            if refuse {
                listener = None;
            } else if listener.is_none() {
                // A connection that is closing can still occupy the address for a moment.
                listener = TcpListener::bind(listen).ok();
            }
            let accepted = listener.as_ref().and_then(|listener| {
                listener.set_nonblocking(true).ok()?;
                listener.accept().ok()
            });
            match accepted {
                Some((client, _)) => self.connect(client),
                None => std::thread::sleep(LOOK),
            }
        }
    }

    /// Connects `client` to the target; closes it if the target is unreachable.
    fn connect(self: &Arc<Self>, client: TcpStream) {
        let connect = || -> io::Result<_> {
            client.set_nonblocking(false)?;
            let server = TcpStream::connect_timeout(&self.target(), PATIENCE)?;
            for stream in [&client, &server] {
                stream.set_nodelay(true)?;
            }
            let pair = || io::Result::Ok((client.try_clone()?, server.try_clone()?));
            Ok((pair()?, pair()?, pair()?))
        };
        if let Ok((kept, up, down)) = connect() {
            let mut state = self.lock();
            state.open.retain(|(client, _)| client.peer_addr().is_ok());
            state.open.push(kept);
            state.made += 1;
            let number = state.made;
            drop(state);
            let [up, down] = [up, down].map(|(client, server)| (client, server, number));
            let reply_lost = Arc::new(Mutex::new(false));
            let (shared, flag) = (self.clone(), reply_lost.clone());
            std::thread::spawn(move || shared.pump_up(&up, &flag));
            let shared = self.clone();
            std::thread::spawn(move || shared.pump_down(&down, &reply_lost));
        }
    }

    /// Client to server: message by message, so that a COMMIT can be detected before it is forwarded.
    fn pump_up(&self, (client, server, number): &Link, reply_lost: &Mutex<bool>) {
        let mut messages = Messages::default();
        let mut buffer = vec![0; 64 << 10];
        while let Some(piece) = read(client, &mut buffer) {
            messages.push(piece);
            while let Some(message) = messages.next() {
                match (!messages.encrypted && is_commit(&message)).then(|| self.take_cut(messages.is_lane)).flatten() {
                    Some(AtCommit::RequestLost) => {
                        close(client, server);
                        return;
                    }
                    Some(late_or_unanswered) => {
                        // Set before the message is sent, so that the response cannot slip through.
                        *reply_lost.lock().unwrap_or_else(PoisonError::into_inner) = true;
                        if late_or_unanswered != AtCommit::ReplyLost {
                            let _ = client.shutdown(Shutdown::Both);
                            if let AtCommit::Late(time) = late_or_unanswered {
                                std::thread::sleep(time);
                            } else {
                                self.hold();
                            }
                            // The other pump closes the connection when the server has responded.
                            return drop(self.pass(server, *number, &message));
                        }
                    }
                    None => {}
                }
                if self.pass(server, *number, &message).is_err() {
                    close(client, server);
                    return;
                }
            }
        }
        close(client, server);
    }

    /// Server to client: in chunks as read.
    fn pump_down(&self, (client, server, number): &Link, reply_lost: &Mutex<bool>) {
        let mut buffer = vec![0; 64 << 10];
        let mut swallowed = Vec::new();
        while let Some(piece) = read(server, &mut buffer) {
            if *reply_lost.lock().unwrap_or_else(PoisonError::into_inner) {
                swallowed.extend_from_slice(piece);
                if contains(&swallowed, b"COMMIT\0") {
                    break;
                }
            } else if self.pass(client, *number, piece).is_err() {
                break;
            }
        }
        close(client, server);
    }

    /// Waits until the COMMITs that are held are released.
    fn hold(&self) {
        let mut state = self.lock();
        let released = state.released;
        while state.released == released && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_cut(&self, is_lane: bool) -> Option<AtCommit> {
        let mut state = self.lock();
        let (what, times) = state.at_commit?;
        if what == AtCommit::Held && !is_lane {
            return None;
        }
        state.at_commit = (times > 1).then(|| (what, times - 1));
        self.commits_cut.fetch_add(1, Ordering::SeqCst);
        Some(what)
    }

    /// Forwards `bytes` of connection `number` according to the mode; never, if the mode is half-open.
    fn pass(&self, mut to: &TcpStream, number: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        while (state.mode == Mode::Swallow || number <= state.silent_up_to) && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let State { mode, closed, .. } = *state;
        drop(state);
        if closed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match mode {
            Mode::Delay(time) => std::thread::sleep(time),
            Mode::Throttle(per_second) => {
                std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(per_second)));
            }
            Mode::Pass | Mode::Refuse | Mode::Swallow => {}
        }
        to.write_all(bytes)
    }
}

fn read<'a>(mut from: &TcpStream, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    match from.read(buffer) {
        Ok(0) | Err(_) => None,
        Ok(len) => Some(&buffer[..len]),
    }
}

fn close(client: &TcpStream, server: &TcpStream) {
    for stream in [client, server] {
        // An error means that it is already closed.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// Returns whether a simple query or a statement being prepared is a COMMIT, exactly: `ON COMMIT DROP` and
/// `synchronous_commit` do not count.
fn is_commit(message: &[u8]) -> bool {
    matches!(message.first(), Some(b'Q' | b'P'))
        && message[5..]
            .split(|byte| matches!(byte, 0 | b';'))
            .any(|text| text.trim_ascii().eq_ignore_ascii_case(b"COMMIT"))
}

/// Splits a PostgreSQL client's stream into messages; from the first byte of TLS on, into what has arrived.
#[derive(Default)]
struct Messages {
    buffer: Vec<u8>,
    started: bool,
    encrypted: bool,
    /// Whether the startup message names a connection of a lane, `logweir/WRITER/LANE/EPOCH`.
    is_lane: bool,
}

/// Codes of the messages that precede the startup message.
const BEFORE_STARTUP: [u32; 2] = [80_877_103, 80_877_104];

/// First byte of TLS, and never of a message before the startup: these are shorter than 16 MiB.
const TLS_HANDSHAKE: u8 = 0x16;

impl Messages {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.encrypted |= !self.started && self.buffer.first() == Some(&TLS_HANDSHAKE);
        if self.encrypted {
            return Some(std::mem::take(&mut self.buffer)).filter(|bytes| !bytes.is_empty());
        }
        // Without a type byte until the connection is started: SSLRequest, then the startup message.
        let at = usize::from(self.started);
        let number = |from: usize| Some(u32::from_be_bytes(self.buffer.get(from..from + 4)?.try_into().ok()?));
        let len = at + number(at)? as usize;
        if self.buffer.len() < len {
            return None;
        }
        if !self.started {
            self.started = !BEFORE_STARTUP.contains(&number(4)?);
            self.is_lane = self.buffer[..len].split(|byte| *byte == 0).any(|value| {
                let parts: Vec<&[u8]> = value.split(|byte| *byte == b'/').collect();
                matches!(parts[..], [b"logweir", _, lane, epoch] if is_number(lane) && is_number(epoch))
            });
        }
        let rest = self.buffer.split_off(len);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo server.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Some(piece) = read(&stream, &mut buffer).map(<[u8]>::to_vec) {
                        stream.write_all(&piece).unwrap();
                    }
                });
            }
        });
        addr
    }

    fn message(kind: u8, text: &str) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend((text.len() as u32 + 5).to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes
    }

    fn startup() -> Vec<u8> {
        [[0, 0, 0, 8], 196_608_u32.to_be_bytes()].concat()
    }

    fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(bytes)?;
        let mut answer = vec![0; bytes.len()];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, bytes);
        Ok(())
    }

    fn started(proxy: &Proxy) -> TcpStream {
        let mut stream = TcpStream::connect(proxy.addr()).unwrap();
        exchange(&mut stream, &startup()).unwrap();
        stream
    }

    #[test]
    fn messages_are_split_independently_of_chunk_boundaries() {
        let ssl = [[0, 0, 0, 8], 80_877_103_u32.to_be_bytes()].concat();
        let all = [ssl, startup(), message(b'Q', "BEGIN"), message(b'd', &"x".repeat(300))];
        let bytes = all.concat();
        for size in [1, 7, bytes.len()] {
            let mut messages = Messages::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                messages.push(piece);
                seen.extend(std::iter::from_fn(|| messages.next()));
            }
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn tls_is_forwarded_as_it_arrives() {
        let mut messages = Messages::default();
        let ssl = [[0, 0, 0, 8], 80_877_103_u32.to_be_bytes()].concat();
        messages.push(&ssl);
        assert_eq!(messages.next(), Some(ssl));
        for bytes in [&[TLS_HANDSHAKE, 3, 1, 0][..], &[200, b'Q', 0, 0], b"COMMIT"] {
            messages.push(bytes);
            assert_eq!(messages.next().as_deref(), Some(bytes));
            assert_eq!(messages.next(), None);
        }
    }

    #[test]
    fn bytes_are_forwarded_and_a_cut_closes_the_connection() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = started(&proxy);
        exchange(&mut stream, &message(b'Q', "SELECT 1")).unwrap();
        proxy.cut();
        assert!(exchange(&mut stream, &message(b'Q', "SELECT 1")).is_err());
        started(&proxy);
    }

    #[test]
    fn connections_are_refused_until_the_mode_changes() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut kept = started(&proxy);
        proxy.set(Mode::Refuse);
        while TcpStream::connect(proxy.addr()).is_ok() {
            std::thread::sleep(LOOK);
        }
        exchange(&mut kept, &message(b'Q', "still here")).unwrap();
        proxy.set(Mode::Pass);
        while TcpStream::connect(proxy.addr()).is_err() {
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn a_half_open_connection_stays_silent_and_new_ones_work_after_the_mode_changes() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = started(&proxy);
        let mut is_silent = || {
            stream.write_all(&message(b'Q', "SELECT 1")).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.read(&mut [0; 16]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        proxy.set(Mode::Swallow);
        assert!(is_silent());
        proxy.set(Mode::Pass);
        started(&proxy);
        assert!(is_silent());
    }

    #[test]
    fn a_commit_is_cut_before_it_arrives_or_before_its_response() {
        let proxy = Proxy::start(echo()).unwrap();
        for (what, commit) in [
            (AtCommit::RequestLost, message(b'Q', "SELECT 1; commit")),
            (AtCommit::RequestLost, message(b'P', "COMMIT")),
            // The echo is the dropped response; like a server's, it contains COMMIT.
            (AtCommit::ReplyLost, message(b'Q', "COMMIT")),
        ] {
            let before = proxy.commits_cut();
            proxy.cut_at_commit(what, 1);
            let mut stream = started(&proxy);
            exchange(&mut stream, &message(b'Q', "CREATE TEMP TABLE t () ON COMMIT DROP")).unwrap();
            exchange(&mut stream, &message(b'Q', "BEGIN; SET LOCAL synchronous_commit = on")).unwrap();
            exchange(&mut stream, &message(b'd', "COMMIT")).unwrap();
            assert!(exchange(&mut stream, &commit).is_err());
            assert_eq!(proxy.commits_cut(), before + 1);
            exchange(&mut started(&proxy), &message(b'Q', "COMMIT")).unwrap();
        }
    }
}

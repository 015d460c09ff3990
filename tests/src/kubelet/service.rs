//! A Service: one address in front of the ready pods. As in a cluster, a connection stays with its pod as long as both
//! live, independently of the pod's readiness.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A Service; stopped on drop, with its connections.
pub struct Service {
    addr: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    endpoints: Vec<SocketAddr>,
    next: usize,
    open: Vec<TcpStream>,
    closed: bool,
}

impl Service {
    /// Starts a Service without pods.
    ///
    /// # Errors
    /// If no port can be bound.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let shared = Arc::<Mutex<Shared>>::default();
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Ok(Self { addr, shared, acceptor: Some(acceptor) })
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets the backends of new connections.
    pub fn lead_to(&self, endpoints: Vec<SocketAddr>) {
        lock(&self.shared).endpoints = endpoints;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.closed = true;
        for stream in shared.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(shared);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Mutex<Shared>) {
    for client in listener.incoming() {
        let mut shared = lock(shared);
        if shared.closed {
            return;
        }
        let Ok(client) = client else { continue };
        shared.open.retain(|stream| stream.peer_addr().is_ok());
        shared.next = shared.next.wrapping_add(1);
        let ready = shared.endpoints.len();
        // Without a pod the connection is closed at once; a cluster would refuse it.
        let Some(&pod) = shared.endpoints.get(shared.next % ready.max(1)) else { continue };
        let Ok(pod) = TcpStream::connect(pod) else { continue };
        let (Ok(from_client), Ok(from_pod)) = (client.try_clone(), pod.try_clone()) else { continue };
        let (Ok(client_end), Ok(pod_end)) = (client.try_clone(), pod.try_clone()) else { continue };
        shared.open.extend([client_end, pod_end]);
        for (from, to) in [(from_client, pod), (from_pod, client)] {
            std::thread::spawn(move || copy(from, to));
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

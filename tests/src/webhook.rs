//! A webhook receiver for alerts with configurable responses.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;

/// A receiver. Its thread ends with the test process.
pub struct Webhook {
    addr: SocketAddr,
    notices: Receiver<(u16, Value)>,
}

impl Webhook {
    /// Starts a receiver that responds to the first requests with the statuses `answers`, then with 200.
    ///
    /// # Panics
    /// If no port can be bound.
    #[must_use]
    pub fn start(answers: Vec<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("its address");
        let (sender, notices) = channel();
        std::thread::spawn(move || {
            let mut answers = answers.into_iter();
            for stream in listener.incoming().map_while(Result::ok) {
                let status = answers.next().unwrap_or(200);
                if receive(stream, status, &sender).is_none() {
                    return;
                }
            }
        });
        Self { addr, notices }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    /// Returns the next notification and the status of the response.
    ///
    /// # Panics
    /// On timeout.
    #[must_use]
    pub fn next(&self) -> (u16, Value) {
        self.notices.recv_timeout(crate::scenario::PATIENCE).expect("a notification arrives")
    }

    /// Takes the notifications that have been sent until now, also what is still on its way.
    ///
    /// # Panics
    /// On timeout.
    pub fn drain(&self) {
        let own = crate::client::post_body(
            &crate::client::agent(crate::scenario::PATIENCE),
            &self.url(),
            "application/json",
            "\"own\"",
        );
        assert_eq!(own.map(|answer| answer.status).ok(), Some(200), "it answers");
        // It takes one request after the other.
        while self.next().1 != "own" {}
    }

    /// Returns a notification if one has arrived.
    #[must_use]
    pub fn try_next(&self) -> Option<(u16, Value)> {
        self.notices.try_recv().ok()
    }
}

/// Handles a request; returns `None` when the receiver was dropped.
fn receive(stream: TcpStream, status: u16, sender: &Sender<(u16, Value)>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return Some(()); // no request was sent
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    reader.get_mut().write_all(answer.as_bytes()).ok()?;
    sender.send((status, serde_json::from_slice(&body).expect("a notification is JSON"))).ok()
}

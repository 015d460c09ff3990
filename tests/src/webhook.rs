//! A receiver of alerts: answers as it is told, and writes down what it got.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;

/// The receiver. Its thread ends with the test's process.
pub struct Webhook {
    addr: SocketAddr,
    notices: Receiver<(u16, Value)>,
}

impl Webhook {
    /// Listens; answers the first requests with `answers`, and 200 from then on.
    ///
    /// # Panics
    /// There is no port.
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

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    /// The next notice, and how it was answered.
    ///
    /// # Panics
    /// None comes in time.
    #[must_use]
    pub fn next(&self) -> (u16, Value) {
        self.notices.recv_timeout(crate::scenario::PATIENCE).expect("a notice")
    }

    /// The notice that has come, if one has.
    #[must_use]
    pub fn try_next(&self) -> Option<(u16, Value)> {
        self.notices.try_recv().ok()
    }
}

/// `None` when nobody wants to know any more.
fn receive(stream: TcpStream, status: u16, sender: &Sender<(u16, Value)>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return Some(()); // nothing was asked
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
    sender.send((status, serde_json::from_slice(&body).expect("a notice is JSON"))).ok()
}

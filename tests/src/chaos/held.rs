//! Sessions that hold something until they are dropped: a lock, a snapshot, or their connection.

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio_postgres::NoTls;

/// Open sessions on a thread of their own.
pub struct Held {
    release: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Opens up to `sessions` sessions, in each of which `sql` is run, and keeps them open. Fewer if the server refuses
    /// more.
    ///
    /// # Errors
    /// Not even one could be opened.
    pub fn open(url: &str, sql: &str, sessions: usize) -> Result<Self, String> {
        let (release, released) = oneshot::channel();
        let (opened, result) = mpsc::channel();
        let (url, sql) = (url.to_owned(), sql.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut clients = Vec::new();
                while clients.len() < sessions {
                    match open_one(&url, &sql).await {
                        Ok(client) => clients.push(client),
                        Err(error) if clients.is_empty() => return drop(opened.send(Err(error))),
                        Err(_) => break,
                    }
                }
                let _ = opened.send(Ok(()));
                let _ = released.await;
            });
        });
        result.recv().map_err(|_| "the thread of the sessions ended".to_owned())??;
        Ok(Self { release: Some(release), thread: Some(thread) })
    }
}

async fn open_one(url: &str, sql: &str) -> Result<tokio_postgres::Client, String> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    client.batch_execute(sql).await.map_err(|error| format!("{sql}: {error:?}"))?;
    Ok(client)
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

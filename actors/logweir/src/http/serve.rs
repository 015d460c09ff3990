//! Starts the listeners.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use actix_web::{App, HttpServer};
use logweir_tls as tls;
use rustls::ServerConfig;

use super::auth::Listener;
use super::gate::gate;
use super::routes::{admin_routes, data_routes};
use super::shared::{Connection, Shared};
use crate::resources::ADMIN_CONNECTIONS_MAX;

/// How long the unread rest of a body is read and discarded after an early response, so that the client sees the
/// response instead of a connection reset.
const LINGER: Duration = Duration::from_secs(2);

/// A server, which runs while its future is awaited, and its address.
pub struct Serving {
    /// Completes when the server has stopped.
    pub server: Server,
    /// Stops the server: `stop(true)` lets requests in flight finish.
    pub handle: ServerHandle,
    /// The listen address.
    pub address: SocketAddr,
}

/// Starts the data listener on `listener`. Must be called inside an actix system.
///
/// # Errors
/// The listener cannot be used, or the TLS files cannot be loaded.
pub fn serve_data(shared: &Shared, listener: TcpListener) -> std::io::Result<Serving> {
    let workers = shared.config.http.workers;
    let connections_max = shared.config.http.connections_max;
    let tls = shared.config.http.tls().map(|files| tls::server_config("http", files)).transpose();
    let tls = tls.map_err(std::io::Error::other)?;
    serve(shared, listener, tls, Listener::Data, workers, connections_max, data_routes)
}

/// Starts the admin listener on `listener`. Must be called inside an actix system.
///
/// # Errors
/// The listener cannot be used.
pub fn serve_admin(shared: &Shared, listener: TcpListener) -> std::io::Result<Serving> {
    // Never uses TLS: probes have no certificate, and the port serves only this machine and its kubelet.
    serve(shared, listener, None, Listener::Admin, 1, ADMIN_CONNECTIONS_MAX, admin_routes)
}

fn serve(
    shared: &Shared,
    listener: TcpListener,
    tls: Option<ServerConfig>,
    which: Listener,
    workers: usize,
    connections_max: usize,
    routes: fn(&mut ServiceConfig),
) -> std::io::Result<Serving> {
    let address = listener.local_addr()?;
    let request_timeout = Duration::from_millis(shared.config.http.request_timeout_ms);
    let streams = shared.clone();
    let shared = shared.clone();
    let server = HttpServer::new(move || {
        App::new().app_data(web::Data::new(shared.clone())).app_data(which).wrap(from_fn(gate)).configure(routes)
    })
    .workers(workers)
    .max_connections(connections_max.div_ceil(workers))
    .client_request_timeout(request_timeout)
    .client_disconnect_timeout(LINGER)
    // A client that disconnects ends its query. A half-closed connection counts as disconnected.
    .h1_allow_half_closed(false)
    .keep_alive(request_timeout.max(Duration::from_secs(75)))
    // A short response must not wait for the client's next TCP acknowledgment.
    .tcp_nodelay(true)
    .on_connect(move |_, data| {
        if let Some(running) = streams.running.get() {
            data.insert(Connection(running.intake.new_stream()));
        }
    })
    .disable_signals();
    let server = match tls {
        None => server.listen(listener)?,
        Some(tls) => server.listen_rustls_0_23(listener, tls)?,
    }
    .run();
    Ok(Serving { handle: server.handle(), server, address })
}

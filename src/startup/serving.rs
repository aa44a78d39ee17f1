//! What becomes of accepted connections: actix's HTTP/1 over each of them, read in turns ([`crate::http::turns`]).
//!
//! actix-web's own `HttpServer` would take connections as they are.

use std::{convert::Infallible, io, net::SocketAddr, os::fd::AsFd, rc::Rc, sync::Arc, time::Duration};

use actix_http::{HttpService, Protocol, Request, Response, body::BoxBody, error::DispatchError};
use actix_server::GracefulShutdownSignal;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, apply_fn_factory, fn_service, map_config};
use actix_tls::accept::{
    TlsError,
    rustls_0_23::{Acceptor, TlsStream},
};
use actix_web::{
    App,
    dev::AppConfig,
    rt::net::{TcpStream, UnixStream},
};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use super::placed::Placed;
use crate::{
    http::{
        self, Front,
        surplus::{Places, Taken},
        turns::{
            GOODBYE, HEAD, Turns,
            answers::{Answers, Counted},
        },
    },
    relay, stack,
};

/// How long a connection may be idle between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(120);

/// After so long in which a client takes nothing of what is sent to it, its connection is closed.
pub(super) const READER_PATIENCE: Duration = Duration::from_secs(60);

/// What a listener's workers need for its connections.
#[derive(Clone)]
pub(super) struct Serving {
    pub front: Front,
    pub places: Arc<Places>,
    /// Tells idle connections that the server stops.
    pub stopping: GracefulShutdownSignal,
}

/// A connection that HTTP/1 is spoken on, and who is at its other end.
type Accepted<T> = (Turns<T>, Protocol, Option<SocketAddr>);

fn accepted<T>(connection: T, taken: Rc<Taken>, peer: Option<SocketAddr>) -> Accepted<T> {
    (Turns::new(connection, taken), Protocol::Http1, peer)
}

/// What a request of this connection is answered, counted where it is sent.
fn counted(answers: Option<Answers>, answer: Result<Response<BoxBody>, actix_web::Error>) -> Response<Counted> {
    let answer = answer.unwrap_or_else(|error| error.error_response().into());
    match answers {
        Some(answers) => answers.count(answer),
        None => answer.map_body(|_, body| Counted::by_nobody(body)),
    }
}

impl Serving {
    /// Connections as they are.
    pub fn plain(
        &self,
    ) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()> + use<> {
        let places = Arc::clone(&self.places);
        fn_service(move |connection: TcpStream| {
            let connection = Placed::new(connection, &places, false);
            let (taken, peer) = (Rc::clone(&connection.taken), connection.peer);
            async move { Ok(accepted(connection, taken, peer)) }
        })
        .and_then(self.http())
    }

    /// Connections of the same machine.
    pub fn unix(
        &self,
    ) -> impl ServiceFactory<UnixStream, Config = (), Response = (), Error = DispatchError, InitError = ()> + use<> {
        let places = Arc::clone(&self.places);
        fn_service(move |connection: UnixStream| {
            let taken = Rc::new(places.take(None, connection.as_fd(), false));
            // What TCP's own timer does for the others.
            let (connection, protocol, peer) = accepted(connection, taken, None);
            async move { Ok((connection.with_patience(READER_PATIENCE), protocol, peer)) }
        })
        .and_then(self.http())
    }

    /// Connections under TLS.
    pub fn encrypted(
        &self,
        mut config: ServerConfig,
    ) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = TlsError<io::Error, DispatchError>, InitError = ()> + use<>
    {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let places = Arc::clone(&self.places);
        let handshake = Acceptor::new(config)
            .map_init_err(|_| ())
            .map_err(|error: TlsError<io::Error, Infallible>| error.into_service_error());
        fn_service(move |connection: TcpStream| {
            let connection = Placed::new(connection, &places, true);
            async move { Ok(connection) }
        })
        .and_then(handshake)
        .and_then(fn_service(|connection: TlsStream<Placed>| async {
            let placed = connection.get_ref().0;
            let (taken, peer) = (Rc::clone(&placed.taken), placed.peer);
            Ok(accepted(connection, taken, peer))
        }))
        .and_then(self.http().map_err(TlsError::Service))
    }

    fn http<T>(
        &self,
    ) -> impl ServiceFactory<Accepted<T>, Config = (), Response = (), Error = DispatchError, InitError = ()> + use<T>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        actix_web::rt::spawn(stack::keep_overwriting());
        actix_web::rt::spawn(relay::serve());
        let (front, stopping) = (self.front.clone(), self.stopping.clone());
        let app = App::new().configure(|app| http::configure(app, front));
        let app = IntoServiceFactory::<_, Request>::into_factory(app);
        let app = apply_fn_factory(app, |request: Request, app| {
            let answers = request.conn_data::<Answers>().cloned();
            let answer = app.call(request);
            async move { Ok(counted(answers, answer.await.map(Into::into))) }
        })
        .map_err(|error: actix_web::Error| Response::<BoxBody>::from(error.error_response()));
        HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(HEAD)
            .client_disconnect_timeout(GOODBYE)
            // A client may close its sending side: without this, work for it would stand still, half done, until its answers are read.
            .h1_allow_half_closed(true)
            .on_connect_ext(|connection: &Turns<T>, data| {
                data.insert(connection.taken());
                data.insert(connection.answers());
            })
            .finish(map_config(app, |()| AppConfig::default()))
    }
}

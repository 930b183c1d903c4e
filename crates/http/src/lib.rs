//! HTTP transport of Litemesh: server-sent events and POST, client and server.

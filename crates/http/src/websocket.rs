//! What both ends of a WebSocket share (RFC 6455; docs/protocol.md, "WebSocket").

use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// The subprotocol of wire v2: a frame in each binary message.
pub(crate) const FRAMES_PROTOCOL: &str = "litemesh.v2";

/// The subprotocol of wire v1: JSON in each text message. Also where none is named.
pub(crate) const JSON_PROTOCOL: &str = "litemesh.v1";

/// Request header of a stream: the client would rather have a WebSocket, if there are any.
pub(crate) const OFFER_HEADER: &str = "litemesh-websocket";

/// Bytes of the buffer that each socket reads into. Most messages are small, and most sockets silent.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// Bytes of the reason in a close frame: a control frame has 125 at most.
const REASON_BYTES_MAX: usize = 123;

/// How a socket is set up that takes messages up to this size.
pub(crate) fn config(message_bytes_max: usize) -> WebSocketConfig {
    // Written at once: whoever sends waits for it.
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

/// A reason as it fits a close frame.
pub(crate) fn close_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_a_control_frame() {
        assert_eq!(close_reason("short"), "short");
        let long = "ü".repeat(100);
        assert_eq!(close_reason(&long).len(), 122);
    }
}

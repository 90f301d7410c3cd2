//! The options of a socket by the names of the JSON contract, with libzmq's defaults (`options.cpp`, 4.1 to 4.3.5).

use std::fmt;

use serde_json::{Value, json};

use super::arguments::escaped;
use crate::{
    constants::{DISH, SUB, XSUB},
    event::SocketState,
};

/// An option and its value.
pub struct SocketOption {
    /// Its name.
    pub name: &'static str,
    /// `null`: not known.
    pub value: Value,
    /// What it is unless the program sets it.
    defaults: &'static [i64],
}

const MECHANISMS: [&str; 4] = ["NULL", "PLAIN", "CURVE", "GSSAPI"];

impl SocketOption {
    /// Whether it is as libzmq has it. What is not known is not worth a word.
    pub fn is_default(&self) -> bool {
        let number = match &self.value {
            Value::Null => return true,
            Value::Bool(value) => i64::from(*value),
            Value::String(text) => return text.is_empty() || text == MECHANISMS[0],
            value => value.as_i64().unwrap_or(-1),
        };
        self.defaults.contains(&number)
    }
}

impl fmt::Display for SocketOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Null => write!(f, "{}=?", self.name),
            Value::String(text) if self.name == "routing_id" => write!(f, "{}=\"{text}\"", self.name),
            Value::String(text) => write!(f, "{}={text}", self.name),
            value => write!(f, "{}={value}", self.name),
        }
    }
}

/// All options of a socket.
pub fn of(socket: &SocketState) -> Vec<SocketOption> {
    let options = &socket.options;
    // A closing subscriber does not wait to send its subscriptions.
    let lingers = !matches!(socket.socket_type, Some(SUB | XSUB | DISH));
    let mechanism = options.mechanism.map(|number| {
        let name = usize::try_from(number).ok().and_then(|number| MECHANISMS.get(number));
        name.map_or_else(|| number.to_string(), ToString::to_string)
    });
    let routing_id = options.routing_id.as_deref().map(escaped);
    let option = |name, value: Value, defaults| SocketOption { name, value, defaults };
    vec![
        option("sndhwm", json!(options.sndhwm), &[1000]),
        option("rcvhwm", json!(options.rcvhwm), &[1000]),
        option("linger", json!(options.linger), if lingers { &[-1] } else { &[0, -1] }),
        option("sndtimeo", json!(options.sndtimeo), &[-1]),
        option("rcvtimeo", json!(options.rcvtimeo), &[-1]),
        option("reconnect_ivl", json!(options.reconnect_ivl), &[100]),
        option("reconnect_ivl_max", json!(options.reconnect_ivl_max), &[0]),
        option("immediate", json!(options.immediate), &[0]),
        option("ipv6", json!(options.ipv6), &[0]),
        option("conflate", json!(options.conflate), &[0]),
        option("tcp_keepalive", json!(options.tcp_keepalive), &[-1]),
        option("tcp_keepalive_cnt", json!(options.tcp_keepalive_cnt), &[-1]),
        option("tcp_keepalive_idle", json!(options.tcp_keepalive_idle), &[-1]),
        option("tcp_keepalive_intvl", json!(options.tcp_keepalive_intvl), &[-1]),
        option("heartbeat_ivl", json!(options.heartbeat_ivl), &[0]),
        option("heartbeat_timeout", json!(options.heartbeat_timeout), &[-1]),
        option("handshake_ivl", json!(options.handshake_ivl), &[30_000]),
        option("connect_timeout", json!(options.connect_timeout), &[0]),
        option("mechanism", json!(mechanism), &[]),
        option("as_server", json!(options.as_server), &[0]),
        option("routing_id", json!(routing_id), &[]),
        option("maxmsgsize", json!(options.maxmsgsize), &[-1]),
        option("backlog", json!(options.backlog), &[100]),
        option("affinity", json!(options.affinity), &[0]),
        // The system's: 0 before 4.2, -1 since.
        option("sndbuf", json!(options.sndbuf), &[0, -1]),
        option("rcvbuf", json!(options.rcvbuf), &[0, -1]),
        option("tos", json!(options.tos), &[0]),
    ]
}

// Loaded before every script here: a connection to anything but this machine is refused.
import net from "node:net";

const LOOPBACK = new Set(["127.0.0.1", "::1", "localhost"]);
const connect = net.Socket.prototype.connect;

net.Socket.prototype.connect = function (...args) {
  const first = Array.isArray(args[0]) ? args[0][0] : args[0];
  const host = typeof first === "object" ? (first.host ?? first.path) : (args[1] ?? "localhost");
  if (!LOOPBACK.has(host)) throw new Error(`only_loopback: refused to connect to ${host}`);
  return connect.apply(this, args);
};

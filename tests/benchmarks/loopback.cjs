// Preloaded into a peer that would listen on every address: it listens on 127.0.0.1 alone.
const { Server } = require("node:net");

const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  const callback = rest.find((each) => typeof each === "function");
  return listen.call(this, { port, host: "127.0.0.1" }, callback);
};

// A service whose work is to wait for as long as it is told, if at all: what is measured is all around it.
const http2 = require("node:http2");
const { setTimeout: sleep } = require("node:timers/promises");
const restate = require("@restatedev/restate-sdk");

const run = async (_context, { id, ms, response }) => {
  if (ms > 0) await sleep(ms);
  return [id, response];
};
const bench = restate.service({ name: "bench", handlers: { run } });
const handler = restate.createEndpointHandler({ services: [bench] });
http2.createServer(handler).listen(Number(process.argv[1]), "127.0.0.1", () => console.log("ready"));

// Node's http module as tests/fuzz/http_servers.py asks it: batches of streams on stdin, one line of JSON per batch.
//   u32 count, then count times: u32 length, u32 closed (the client's FIN came), the stream
// Answer: [[number, method, target, raw headers], ...]
'use strict';
const http = require('http');
const { Duplex } = require('stream');

let seen = [];
const server = http.createServer((request, response) => {
  seen.push([request.socket.number, request.method, request.url, request.rawHeaders]);
  request.resume();
  response.end('ok\n');
});
server.keepAliveTimeout = 0;
server.on('clientError', (error, socket) => socket.destroy());

class Connection extends Duplex {
  constructor(number) {
    super({ allowHalfOpen: true });
    this.number = number;
  }
  _read() {}
  _write(chunk, encoding, done) { done(); }
  setTimeout() { return this; }
  setNoDelay() {}
  setKeepAlive() {}
}

function serve(streams) {
  const connections = streams.map(({ data, closed }, number) => {
    const connection = new Connection(number);
    connection.on('error', () => {});
    server.emit('connection', connection);
    if (data.length) connection.push(data);
    if (closed) connection.push(null);
    return connection;
  });
  return new Promise((resolve) => {
    let turns = 12;
    const turn = () => {
      if (turns-- > 0) return setImmediate(turn);
      for (const connection of connections) connection.destroy();
      resolve();
    };
    setImmediate(turn);
  });
}

let waiting = Buffer.alloc(0), busy = false;

function take() {
  if (waiting.length < 4) return null;
  let at = 4;
  const streams = [];
  for (let left = waiting.readUInt32LE(0); left > 0; left--) {
    if (waiting.length < at + 8) return null;
    const length = waiting.readUInt32LE(at), closed = waiting.readUInt32LE(at + 4);
    at += 8;
    if (waiting.length < at + length) return null;
    streams.push({ data: waiting.subarray(at, at + length), closed });
    at += length;
  }
  waiting = waiting.subarray(at);
  return streams;
}

async function work() {
  if (busy) return;
  busy = true;
  for (let streams; (streams = take()) !== null;) {
    await serve(streams);
    process.stdout.write(JSON.stringify(seen) + '\n');
    seen = [];
  }
  busy = false;
}

process.stdin.on('data', (chunk) => {
  waiting = Buffer.concat([waiting, chunk]);
  work();
});
process.stdin.on('end', () => process.exit(0));

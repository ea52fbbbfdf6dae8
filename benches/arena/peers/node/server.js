// Node.js with its own HTTP server, which its frameworks are built on and which is the fastest in the
// registry without a native build. One process and one thread, whatever THREADS says: handlers run to
// completion, so the totals are exact. `cluster` would have to gather them from several processes and
// could neither report nor reset them at one point in time.
import { createServer } from 'node:http';

const BODY_BYTES_MAX = 16384;
const USER_ID_BYTES_MAX = 256;
const IDLE_TIMEOUT_MS = 75_000;

let totalRequests = 0;
let sum = 0;
const users = new Set();

/** Counts the event in `text`; returns false for a body to refuse. */
function count(text) {
  let event;
  try {
    event = JSON.parse(text);
  } catch {
    return false;
  }
  if (event === null || typeof event !== 'object' || Array.isArray(event)) return false;
  const { userId, value } = event;
  if (typeof userId !== 'string' || userId === '' || !Number.isFinite(value)) return false;
  if (Buffer.byteLength(userId) > USER_ID_BYTES_MAX) return false;
  users.add(userId);
  sum += value;
  totalRequests += 1;
  return true;
}

function respond(response, status, body) {
  if (body === undefined) {
    response.writeHead(status, { 'Content-Length': 0 });
    response.end();
    return;
  }
  const text = JSON.stringify(body);
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': Buffer.byteLength(text),
  });
  response.end(text);
}

function receiveEvent(request, response) {
  let text = '';
  request.setEncoding('utf8');
  request.on('data', (chunk) => {
    if (text.length <= BODY_BYTES_MAX) text += chunk;
  });
  request.on('end', () => {
    if (text.length > BODY_BYTES_MAX) respond(response, 413);
    else respond(response, count(text) ? 200 : 400);
  });
}

const server = createServer((request, response) => {
  const route = `${request.method} ${request.url}`;
  if (route === 'POST /event') {
    receiveEvent(request, response);
    return;
  }
  request.resume();
  switch (route) {
    case 'GET /stats': {
      const avg = totalRequests === 0 ? 0 : sum / totalRequests;
      respond(response, 200, { totalRequests, uniqueUsers: users.size, sum, avg });
      break;
    }
    case 'GET /health':
      respond(response, 200, { status: 'healthy' });
      break;
    case 'POST /reset':
      totalRequests = 0;
      sum = 0;
      users.clear();
      respond(response, 200, { status: 'reset' });
      break;
    default:
      respond(response, 404);
  }
});

server.keepAliveTimeout = IDLE_TIMEOUT_MS;
server.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 });

// undici: a pool of connections. Prints the number of acknowledged events.
const { Pool } = require('undici');

const [url, events, connections] = process.argv.slice(2);
const { origin, pathname } = new URL(url);
const pool = new Pool(origin, { connections: Number(connections) });

const send = async (index) => {
  const body = JSON.stringify({ userId: `user_${index % 75000}`, value: (index % 1000) + 0.5 });
  const response = await pool.request({ path: pathname, method: 'POST', body });
  await response.body.dump();
  return response.statusCode === 200 || response.statusCode === 201;
};

const main = async () => {
  const sent = Array.from({ length: Number(events) }, (_, index) => send(index));
  console.log((await Promise.all(sent)).filter(Boolean).length);
  await pool.close();
};
main();

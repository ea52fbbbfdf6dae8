// k6: a ramp of users, who each wait for a response, and then a spike of the arrival rate. Prints the number of acknowledged
// events, and the sum of their values.
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter } from 'k6/metrics';

const acknowledged = new Counter('acknowledged');
const values = new Counter('values');

export const options = {
  scenarios: {
    ramp: {
      executor: 'ramping-vus',
      startVUs: 1,
      stages: [
        { duration: '2s', target: 8 },
        { duration: '1s', target: 1 },
      ],
    },
    spike: {
      executor: 'ramping-arrival-rate',
      startTime: '3s',
      startRate: 100,
      preAllocatedVUs: 8,
      maxVUs: 8,
      stages: [
        { duration: '1s', target: 100 },
        { duration: '200ms', target: 1500 },
        { duration: '1s', target: 1500 },
        { duration: '200ms', target: 100 },
      ],
    },
  },
};

export default function () {
  const index = exec.scenario.iterationInTest;
  const body = JSON.stringify({ userId: `${exec.scenario.name}_${index}`, value: (index % 1000) + 0.5 });
  const response = http.post(__ENV.URL, body);
  if (response.status === 200 || response.status === 201) {
    acknowledged.add(1);
    values.add((index % 1000) + 0.5);
  }
}

export function handleSummary(data) {
  const { acknowledged, values, http_reqs } = data.metrics;
  const said = [acknowledged, values, http_reqs].map((metric) => metric.values.count);
  return { stdout: `${JSON.stringify(said)}\n` };
}

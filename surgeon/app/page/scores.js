// What an output says: probabilities, the most probable classes, and the objective's value. As in surgeon/runtime/session.py.

export function softmax(output) {
  const largest = output.reduce((a, b) => Math.max(a, b), -Infinity);
  const raised = Float64Array.from(output, (value) => Math.exp(value - largest));
  const sum = raised.reduce((a, b) => a + b, 0);
  return raised.map((value) => value / sum);
}

/** The most probable classes, best first: { index, probability }. */
export function top(output, count = 5) {
  const probabilities = softmax(output);
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  return order.slice(0, count).map((index) => ({ index, probability: probabilities[index] }));
}

/** The objective's value of class `target`. */
export function score(output, target, objective) {
  if (objective === "cross-entropy") return Math.log(Math.max(softmax(output)[target], 1.1754943508222875e-38));
  return output[target];
}

// Questions to the pack's routes (nodes/routes.py). Python computes, so that the map shows what a run would do.
import { api } from '../../scripts/api.js'

// The answer to a question; throws an Error with the server's sentence when it refuses.
export async function ask(path, body) {
  const response = await api.fetchApi(`/conditional_balance/${path}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  })
  const answer = await response.json().catch(() => ({}))
  if (!response.ok) throw new Error(answer.error ?? `${response.status} ${response.statusText}`)
  return answer
}

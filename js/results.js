// What nodes showed in their last run, in core's own store of outputs: it outlives undo and a change of tabs, and after
// a reload of the page it is filled again from the server's history.
import { app } from '../../scripts/app.js'
import { ask } from './server.js'
import { executionIdOf, locatorOf, nodeAt, nodesOf, rootGraph } from './graph.js'

const NAMELESS = '00000000-0000-0000-0000-000000000000' // core's id of a graph that came without one

// {cb_summary, cb_warning, cb_profile, cb_strip, ...} as nodes/shown.py names them; empty before a run.
export function resultOf(node) {
  const outputs = app.nodeOutputs ?? {}
  return outputs[locatorOf(node)] ?? outputs[executionIdOf(node)] ?? {}
}

// The sentence that says why the node was refused or failed, from core's own stores or the server's history; '' if it
// did neither.
export function errorOf(node) {
  const id = executionIdOf(node)
  const refused = app.lastNodeErrors?.[id]?.errors?.map(error => error.details || error.message)
  if (refused?.length) return [...new Set(refused.map(withoutName))].join(' ')
  const failed = app.lastExecutionError
  if (failed) return String(failed.node_id) === id ? failed.exception_message.trim() : ''
  return resultOf(node).cb_error?.[0] ?? ''
}

// Fills the store for those of our nodes that lack their result, after a workflow was loaded.
export async function restoreResults() {
  const lacking = nodesOf(rootGraph()).filter(node => node.comfyClass?.startsWith('CB') && !Object.keys(resultOf(node)).length)
  const workflow = rootGraph()?.id
  if (!lacking.length || !workflow || workflow === NAMELESS) return
  const { results } = await ask('results', { workflow })
  for (const [id, { type, output }] of Object.entries(results)) {
    const node = nodeAt(id)
    if (lacking.includes(node) && node.comfyClass === type) app.nodeOutputs[locatorOf(node)] = output
  }
}

// A new run: what the history said of the last one no longer holds.
export function forgetErrors() {
  for (const output of Object.values(app.nodeOutputs ?? {})) if (output) delete output.cb_error
}

// Core puts the name of the input before our sentence, which names it too.
function withoutName(details) {
  return details.replace(/^(\w+) - (?='\1')/, '')
}

// What nodes showed in their last run, in core's own store of outputs: it outlives undo and a change of tabs, and after
// a reload of the page it is filled again from the server's history.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { ask } from './server.js'
import { executionIdOf, locatorOf, nodeAt, nodesOf, rootGraph } from './graph.js'

const NAMELESS = '00000000-0000-0000-0000-000000000000' // core's id of a graph that came without one

// {cb_summary, cb_warning, cb_told, cb_profile, cb_strip, ...} as nodes/shown.py names them; empty before a run.
export function resultOf(node) {
  const outputs = app.nodeOutputs ?? {}
  return outputs[locatorOf(node)] ?? outputs[executionIdOf(node)] ?? lastPartOf(outputs, executionIdOf(node)) ?? {}
}

// What the last of the nodes showed that a node has put into the prompt by itself: core names their results after them
// ("9.0.0.1") when it brings results back after undo or in another tab.
function lastPartOf(outputs, id) {
  const part = Object.keys(outputs).filter(key => key.startsWith(`${id}.`)).at(-1)
  return part && outputs[part]
}

// The sentence that says why the node was refused or failed, from core's own stores or the server's history; '' if it
// did neither.
export function errorOf(node) {
  const id = executionIdOf(node)
  const refused = app.lastNodeErrors?.[id]?.errors?.map(refusal)
  if (refused?.length) return [...new Set(refused)].join(' ')
  const failed = app.lastExecutionError
  if (failed && String(failed.node_id) === id) return failed.exception_message.trim()
  const { cb_told: told = [], cb_error: before = [] } = resultOf(node)
  return told.find(({ error }) => error)?.error ?? (failed ? '' : before[0] ?? '')
}

// What the node warns of: itself, and what samplers said later of what it asked them for.
export function warningOf(node) {
  const { cb_warning: own = [], cb_told: told = [] } = resultOf(node)
  return [...new Set([...own, ...told.flatMap(({ texts }) => texts)])].join(' ') // a list's runs warn alike
}

// Puts into the store what samplers tell while they run (runtime/runs/notices.py).
export function listen() {
  api.addEventListener('conditional_balance.told', ({ detail }) => hear(detail))
  api.addEventListener('executed', ({ detail }) => keepTold(detail), { capture: true }) // before core replaces the result
  api.addEventListener('execution_start', forgetErrors)
}

// One sampler's words replace its earlier ones; those of no sampler mean that the node has changed.
function hear({ node: id, by, texts, error }) {
  const node = nodeAt(id)
  if (!node?.comfyClass?.startsWith('CB')) return
  const others = by === null ? [] : (resultOf(node).cb_told ?? []).filter(told => told.by !== by)
  const told = texts.length || error ? [...others, { by, texts, error }] : others
  if (told.length || resultOf(node).cb_told) placeOf(node).cb_told = told
}

// The node's own object in the store: core hands it on at undo and to other tabs.
function placeOf(node) {
  const outputs = app.nodeOutputs
  return outputs[locatorOf(node)] ?? outputs[executionIdOf(node)] ?? (outputs[locatorOf(node)] = {})
}

// ComfyUI tells a node's result again where it took it from its cache.
function keepTold(detail) {
  const node = nodeAt(String(detail.display_node ?? detail.node)), told = node && resultOf(node).cb_told
  if (told?.length && detail.output) detail.output.cb_told = told
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

// A new run: how the last one failed no longer holds.
function forgetErrors() {
  for (const output of Object.values(app.nodeOutputs ?? {})) {
    if (!output) continue
    delete output.cb_error
    output.cb_told?.forEach(told => delete told.error)
  }
}

// Why a node was refused. Core puts the name of the input before our sentence, which names it too; core's own message
// ("Required input is missing") has the input ("gate") in its details.
function refusal({ type, message, details = '' }) {
  if (type === 'custom_validation_failed') return details.replace(/^(\w+) - (?='\1')/, '')
  return [message, details].filter(Boolean).join(': ')
}

// Values and results change through many doors (typing, dragging, undo, links, subgraphs, tabs, two renderers) and no
// event tells of them all, so every view looks ten times a second and acts only on what changed.
import { isGone, locatorOf } from './graph.js'

const LOOK_MILLISECONDS = 100

const views = new Map() // by view, its node
const orphans = new Map() // elements of removed nodes by "node kind", while the page still shows them
let clock = null

// Calls view.look() until the node is removed; view.element, if it has one, is what the node shows.
export function watch(view, node) {
  views.set(view, node)
  clock ??= setInterval(() => document.hidden || look(), LOOK_MILLISECONDS)
  const before = node.onRemoved
  node.onRemoved = function () {
    unwatch(view)
    return before?.apply(this, arguments)
  }
}

export function unwatch(view) {
  views.delete(view)
  if (view.seat && view.element.isConnected) orphans.set(view.seat, view.element)
}

function look() {
  for (const [view, node] of views) {
    if (isGone(node)) unwatch(view)
    else lookAt(view, node)
  }
  orphans.forEach((element, seat) => element.isConnected || orphans.delete(seat))
}

function lookAt(view, node) {
  if (view.element && node.graph) takeSeat(view, node)
  view.look()
}

// Undo makes every node anew, with its old number. Nodes 2.0 of front end 1.32 takes the new one for the old one and goes
// on showing the old one's element, which would act on a node that is gone.
function takeSeat(view, node) {
  view.seat = `${locatorOf(node)} ${view.constructor.name} ${view.node.id}`
  if (view.element.isConnected || !orphans.get(view.seat)?.isConnected) return
  orphans.get(view.seat).replaceWith(view.element)
  orphans.delete(view.seat)
}

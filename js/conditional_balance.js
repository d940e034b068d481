// Joins the pack's nodes to the front end: a layer map on nodes that have a profile, a strip of masks on the one that
// shows an attribution, a summary beneath every node that ran.
import { app } from '../../scripts/app.js'
import { rememberInputs } from './layer_map/graph.js'
import { LayerMap } from './layer_map/view.js'
import { MaskStrip } from './mask_strip/view.js'
import { showSummary } from './summary.js'

const EDITABLE = new Set(['CBSelectLayers'])
const READ_ONLY = new Set(['CBProfileSensitivity', 'CBLoadSensitivityProfile'])
const STRIPS = new Set(['CBAttributionPreview'])

app.registerExtension({
  name: 'ConditionalBalance.Face',
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (EDITABLE.has(nodeData.name)) rememberInputs(nodeData)
  },
  nodeCreated(node) {
    const kind = node.comfyClass ?? ''
    if (!kind.startsWith('CB')) return
    const map = EDITABLE.has(kind) || READ_ONLY.has(kind) ? new LayerMap(node, EDITABLE.has(kind)) : null
    const strip = STRIPS.has(kind) ? new MaskStrip(node) : null
    const before = node.onExecuted
    node.onExecuted = function (output) {
      const words = output?.cb_summary?.[0]
      if (map) map.executed(words, output?.cb_profile?.[0])
      else if (words) showSummary(this, words)
      if (strip && output?.cb_strip) strip.executed(output.cb_strip)
      return before?.apply(this, arguments)
    }
  },
})

// Joins the pack's nodes to the front end: a layer map on nodes that have a profile, a strip of masks on the one that
// shows an attribution, a slider on the one that compares pictures, tiles
// on the one that tries amounts, two lines of words beneath every other.
import { app } from '../../scripts/app.js'
import { forgetOldValues } from './holders.js'
import { rememberInputs } from './layer_map/graph.js'
import { HeldMaps } from './layer_map/held.js'
import { Compare } from './compare.js'
import { LayerMap } from './layer_map/view.js'
import { joinPresets } from './presets.js'
import { MaskStrip } from './mask_strip/view.js'
import { listen, restoreResults } from './results.js'
import { Suggestions } from './suggest.js'
import { Summary } from './summary.js'
import { sortTemplates } from './templates.js'
import { loadNames, translateNode, translateType } from './translated.js'

const EDITABLE = new Set(['CBSelectLayers', 'CBStyleFromPicture', 'CBStyleAndStructure'])
const READ_ONLY = new Set(['CBProfileSensitivity', 'CBLoadSensitivityProfile'])
const STRIPS = new Set(['CBAttributionPreview'])
const COMPARISONS = new Set(['CBBeforeAfter'])
const TRIES = new Set(['CBSuggestAmount'])

app.registerExtension({
  name: 'ConditionalBalance.Face',
  async init() {
    sortTemplates()
    await loadNames()
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name.startsWith('CB')) translateType(nodeType, nodeData)
    if (EDITABLE.has(nodeData.name)) rememberInputs(nodeData)
  },
  setup() {
    listen()
  },
  nodeCreated(node) {
    if (node.subgraph) {
      forgetOldValues(node)
      new HeldMaps(node)
    }
    const kind = node.comfyClass ?? ''
    if (!kind.startsWith('CB')) return
    translateNode(node)
    joinPresets(node)
    if (STRIPS.has(kind)) new MaskStrip(node)
    if (COMPARISONS.has(kind)) new Compare(node)
    if (TRIES.has(kind)) new Suggestions(node)
    if (EDITABLE.has(kind) || READ_ONLY.has(kind)) new LayerMap(node, EDITABLE.has(kind))
    else new Summary(node)
  },
  async afterConfigureGraph() {
    await restoreResults()
  },
})

// What the viewer does: fetches a slide's map, spots and values when they are chosen, and colours the spots.
// Everything is from the viewer's own server, by paths that report/viewer/answers.py answers.

const by_id = (name) => document.getElementById(name)
const [CLIPPED_BELOW, CLIPPED_ABOVE] = [0.01, 0.99] // colours end at these shares of the values, as on the page
const MOST_OFFERED = 50 // genes that the search offers at a time
const MOST_TILES = 600 // that are kept; each takes a megabyte once it is drawn
const KEY_STEP = 0.15 // of the map that an arrow key moves it by
const [MEASURED, PREDICTED] = ["measured", "predicted"]

const state = {key: null, about: null, view: null, palettes: null, latest: 0, genes: new Set()}
let asked = false

// Paths.

async function get(path, read) {
  const answer = await fetch(path)
  if (answer.ok) return read(answer)
  const said = await answer.json().catch(() => ({}))
  throw new Error(said.error ?? `${path} cannot be had (${answer.status})`)
}
const json = (path) => get(path, (answer) => answer.json())
const floats = (path) => get(path, async (answer) => new Float32Array(await answer.arrayBuffer()))
const of_slide = (key, ...parts) => ["slides", key, ...parts.map(encodeURIComponent)].join("/")

// Tiles: Bokeh's are those of the world, square and without an end; a slide's end where the slide does.

function teach_tiles() {
  const {Models} = Bokeh
  const source = (Models.get ? Models.get("WMTSTileSource") : Models("WMTSTileSource")).prototype
  const {get_tile_meter_bounds, children_by_tile_xyz} = source
  source.is_valid_tile = function (x, y, z) {
    const [across, down] = this.tags[0].tiles[z] ?? [0, 0]
    const row = 2 ** z - 1 - y
    return x >= 0 && x < across && row >= 0 && row < down
  }
  source.get_tile_meter_bounds = function (x, y, z) {
    const [left, bottom, right, top] = get_tile_meter_bounds.call(this, x, y, z)
    const {width, height} = this.tags[0]
    return [left, Math.max(bottom, -height), Math.min(right, width), top]
  }
  source.children_by_tile_xyz = function (x, y, z) {
    if (z >= this.max_zoom) return []
    return children_by_tile_xyz.call(this, x, y, z).filter(([cx, cy, cz]) => this.is_valid_tile(cx, cy, cz))
  }
  // The coarsest that is as fine as the screen; Bokeh takes one that is up to twice as coarse.
  source.get_level_by_extent = function ([left, bottom, right, top], height, width) {
    const px = Math.max((right - left) / width, (top - bottom) / height) / window.devicePixelRatio
    const zoom = Math.ceil(Math.log2(this.initial_resolution / px) - 0.1)
    return Math.min(Math.max(zoom, 0), this.max_zoom)
  }
}

function forget_tiles() {
  const renderer = model("tissue")
  if (!renderer || renderer.tile_source.tiles.size <= MOST_TILES) return
  const {tiles} = renderer.tile_source
  for (const key of [...tiles.keys()].slice(0, tiles.size - MOST_TILES / 2)) tiles.delete(key)
  const drawn = state.view.views.find_one(renderer)
  if (drawn?._tiles) drawn._tiles = drawn._tiles.filter((tile) => tiles.get(tile.cache_key) === tile)
}

// The map.

const model = (name) => state.view?.model.document?.get_model_by_name(name)

async function show_slide(key) {
  const turn = ++state.latest
  say(`opening ${by_id("slide").selectedOptions[0]?.textContent ?? ""}`)
  const [about, figure, xy] = await Promise.all([
    json(of_slide(key, "about.json")),
    get(of_slide(key, "figure.json"), (answer) => answer.text()),
    floats(of_slide(key, "spots")),
  ])
  if (turn !== state.latest) return
  state.manager?.clear()
  by_id("map").replaceChildren()
  const item = JSON.parse(figure.replaceAll("BASE/", `${new URL(of_slide(key), location.href).href}/`))
  state.manager = await Bokeh.embed.embed_item(item, by_id("map"))
  state.view = [...state.manager][0]
  Object.assign(state, {key, about, genes: new Set(about.genes), values: new Map()})
  const n = about.spots
  const [x, y, value] = [new Float32Array(n), new Float32Array(n), new Float32Array(n).fill(NaN)]
  for (let i = 0; i < n; i++) [x[i], y[i]] = [xy[2 * i], xy[2 * i + 1]]
  const id = new Array(n).fill("")
  model("spots").data = {x, y, value, id}
  json(of_slide(key, "ids.json")).then((ids) => ids.forEach((own, i) => (id[i] = own))).catch(fail)
  fit()
  follow_theme()
  offer_layers()
  size_spots()
  fade_spots()
  by_id("notes").replaceChildren(...about.notes.concat(state.failed).map((note) => element("li", note)))
  await show_values()
  fit() // what is said above the map may have made it smaller
}

function element(kind, text, value) {
  const made = document.createElement(kind)
  made.textContent = text
  if (value !== undefined) made.value = value
  return made
}

function offer_layers() {
  const {layers, best, genes} = state.about
  const before = by_id("layer").value
  by_id("layer").replaceChildren(...layers.map(({name, title}) => element("option", title, name)))
  const names = layers.map(({name}) => name)
  const first = asked ? layers.find(({of_gene}) => of_gene)?.name : undefined
  by_id("layer").value = names.includes(before) ? before : first ?? names[0]
  if (!state.genes.has(by_id("gene").value)) by_id("gene").value = best
  by_id("together").hidden = !names.includes(MEASURED) || !names.includes(PREDICTED)
  by_id("gene").disabled = genes.length === 0
  asked = false
}

// Ranges that show all spots, a length across being as long down.
function fit() {
  const {across, up} = {across: model("across"), up: model("up")}
  const {width, height} = state.view.frame.bbox
  const {x0, x1, y0, y1} = state.about.around
  const px = Math.max((x1 - x0) / width, (y1 - y0) / height)
  set_ranges((x0 + x1) / 2, (y0 + y1) / 2, px)
  across.setv({reset_start: across.start, reset_end: across.end})
  up.setv({reset_start: up.start, reset_end: up.end})
}

function set_ranges(x, y, px) {
  const {width, height} = state.view.frame.bbox
  model("across").setv({start: x - (width / 2) * px, end: x + (width / 2) * px})
  model("up").setv({start: y - (height / 2) * px, end: y + (height / 2) * px})
}

function move(right, upwards, closer) {
  const [across, up] = [model("across"), model("up")]
  const [wide, high] = [across.end - across.start, up.end - up.start]
  const px = wide / state.view.frame.bbox.width / closer
  set_ranges((across.start + across.end) / 2 + right * wide, (up.start + up.end) / 2 + upwards * high, px)
}

const KEYS = {
  ArrowLeft: () => move(-KEY_STEP, 0, 1),
  ArrowRight: () => move(KEY_STEP, 0, 1),
  ArrowUp: () => move(0, KEY_STEP, 1),
  ArrowDown: () => move(0, -KEY_STEP, 1),
  "+": () => move(0, 0, 1.5),
  "=": () => move(0, 0, 1.5),
  "-": () => move(0, 0, 1 / 1.5),
  0: fit,
}

// The map is drawn, so that the page's style sheet does not reach it.
const dark = window.matchMedia("(prefers-color-scheme: dark)")
function follow_theme() {
  const [ink, paper] = dark.matches ? ["#e8e8ea", "#1b1b1e"] : ["#1d1d1f", "#ffffff"]
  state.view.model.setv({background_fill_color: paper, border_fill_color: paper})
  model("bar").setv({background_fill_color: paper, major_label_text_color: ink})
}

// Values.

async function values_of(layer, gene) {
  const {key, values} = state
  const path = layer.of_gene ? of_slide(key, "values", layer.name, gene) : of_slide(key, "values", layer.name)
  if (!values.has(path)) {
    if (values.size > 8) values.clear()
    values.set(path, floats(path))
    values.get(path).catch(() => values.delete(path))
  }
  return values.get(path)
}

// The values that the colours end at: percentiles, so that single spots do not take the scale.
function ends(arrays) {
  const length = arrays.reduce((sum, values) => sum + values.length, 0)
  const all = new Float32Array(length)
  arrays.reduce((place, values) => (all.set(values, place), place + values.length), 0)
  const known = all.filter(Number.isFinite).sort()
  if (known.length === 0) return [0, 1]
  const at = (share) => {
    const place = share * (known.length - 1)
    const [under, over] = [Math.floor(place), Math.ceil(place)]
    return known[under] + (known[over] - known[under]) * (place - under)
  }
  const [low, high] = [at(CLIPPED_BELOW), at(CLIPPED_ABOVE)]
  return [low, high > low ? high : low + 1e-6]
}

async function show_values() {
  const turn = ++state.latest
  const {about} = state
  const layer = about.layers.find(({name}) => name === by_id("layer").value) ?? about.layers[0]
  const gene = layer.of_gene ? chosen_gene() : null
  by_id("of_gene").hidden = !layer.of_gene
  if (layer.of_gene && gene === null) return
  const both = about.layers.filter(({name}) => name === MEASURED || name === PREDICTED)
  const together = by_id("one_scale").checked && both.includes(layer) ? both : [layer]
  const arrays = await Promise.all(together.map((one) => values_of(one, gene)))
  if (turn !== state.latest) return
  const values = arrays[together.indexOf(layer)]
  const own = Array.isArray(layer.colours)
  let [low, high] = own ? [-0.5, layer.colours.length - 0.5] : ends(arrays)
  if (layer.colours === "difference") {
    high = Math.max(Math.abs(low), Math.abs(high)) // no difference is in the middle
    low = -high
  }
  model("colours").setv({palette: own ? layer.colours : state.palettes[layer.colours], low, high})
  model("bar").visible = !own
  model("hover").tooltips = [["spot", "@id"]].concat(
    own && layer.colours.length === 1 ? [] : [[own ? "prototype" : layer.title, own ? "@value{0}" : "@value{0.00}"]],
  )
  const source = model("spots")
  source.data = {...source.data, value: values}
  const parts = [`${gene === null ? layer.title : `${gene}, ${layer.title},`} on ${about.name}`]
  if (values.every(Number.isNaN)) parts.push("no values here")
  if (layer.of_gene) parts.push(about.units)
  if (own && layer.colours.length > 1) parts.push("similar colours are similar embeddings")
  parts.push(`${about.spots.toLocaleString("en")} spots`, about.verdict)
  say(parts.filter(Boolean).join("; "))
}

function chosen_gene() {
  const typed = by_id("gene").value.trim()
  if (state.genes.has(typed)) return typed
  const alike = state.about.genes.filter((gene) => gene.toLowerCase() === typed.toLowerCase())
  if (alike.length === 1) return (by_id("gene").value = alike[0])
  const near = matches(typed).slice(0, 3)
  say(`there is no gene ${typed} on this slide${near.length ? `; there is ${near.join(", ")}` : ""}`)
  return null
}

function matches(typed) {
  const wanted = typed.trim().toLowerCase()
  const found = state.about.genes.filter((gene) => gene.toLowerCase().includes(wanted))
  const starts = (gene) => (gene.toLowerCase().startsWith(wanted) ? 0 : 1)
  return found.sort((a, b) => starts(a) - starts(b)) // which keeps the order of the panel
}

function offer_genes() {
  const offered = matches(by_id("gene").value).slice(0, MOST_OFFERED)
  by_id("genes").replaceChildren(...offered.map((gene) => element("option", "", gene)))
}

// Spots.

function size_spots() {
  const wide = state.about.diameter * Number(by_id("size").value)
  model("drawn").glyph.radius = {value: wide / 2}
  by_id("width").textContent = `${wide.toFixed(wide < 10 ? 1 : 0)} ${state.about.unit}`
}

function fade_spots() {
  model("drawn").glyph.fill_alpha = {value: Number(by_id("opacity").value)}
}

function say(text) {
  by_id("words").textContent = text
}

const fail = (error) => say(error.message)

// What is done when.

const on = (name, event, act) =>
  by_id(name).addEventListener(event, () => state.view && Promise.resolve(act()).catch(fail))
by_id("controls").addEventListener("submit", (event) => event.preventDefault())
by_id("slide").addEventListener("change", () => show_slide(by_id("slide").value).catch(fail))
on("layer", "change", show_values)
on("one_scale", "change", show_values)
on("gene", "input", () => {
  offer_genes()
  if (state.genes.has(by_id("gene").value)) return show_values() // chosen from the list
})
on("gene", "change", show_values)
on("gene", "focus", offer_genes)
on("size", "input", size_spots)
on("opacity", "input", fade_spots)
on("reset", "click", fit)
by_id("map").addEventListener("keydown", (event) => {
  if (!state.view || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return
  event.preventDefault()
  KEYS[event.key]()
})
dark.addEventListener("change", () => state.view && follow_theme())
// A length across stays as long down when the window changes.
new ResizeObserver(() => setTimeout(() => state.view && move(0, 0, 1), 100)).observe(by_id("map"))
setInterval(forget_tiles, 2000)

async function start() {
  teach_tiles()
  const [found, palettes] = await Promise.all([json("slides.json"), json("palettes.json")])
  state.palettes = palettes
  state.failed = found.failed.map((reason) => `not shown: ${reason}`)
  asked = found.asked
  by_id("slide").replaceChildren(...found.slides.map(({key, name}) => element("option", name, key)))
  by_id("slide").value = found.start
  await show_slide(found.start)
}

start().catch(fail)
window.viewer = {state, model} // for whoever looks on from the browser's console

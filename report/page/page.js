// What the page does when another gene, slide or scale is chosen. Bokeh calls the default function with the
// models of report/page/maps.py; values come packed as report/page/slide_layers.py describes.

const layers_of = new Map() // slide name -> {layer: Uint8Array}
let shown_slide = null

async function layers(slide) {
  if (!layers_of.has(slide.name)) {
    const found = {}
    for (const [name, layer] of Object.entries(slide.layers)) found[name] = await unpack(layer.data)
    layers_of.set(slide.name, found)
  }
  return layers_of.get(slide.name)
}

function values_of(slide, unpacked, name, gene) {
  return column_of(slide.layers[name], unpacked[name], slide.x.length, gene)
}

// The values that the colours of a map end at: percentiles, so that single spots do not take the scale.
function ends(arrays, [below, above]) {
  const known = arrays.flatMap((values) => Array.from(values).filter(Number.isFinite)).sort((a, b) => a - b)
  if (known.length === 0) return [0, 1]
  const at = (share) => {
    const place = (share / 100) * (known.length - 1)
    const [under, over] = [Math.floor(place), Math.ceil(place)]
    return known[under] + (known[over] - known[under]) * (place - under)
  }
  const [low, high] = [at(below), at(above)]
  return [low, high > low ? high : low + 1e-6]
}

function show_slide(args, slide) {
  const {picture, across, down, genes, table, kept} = args
  const half = slide.spot_px
  const [x0, x1] = [Math.min(...slide.x) - half, Math.max(...slide.x) + half]
  const [y0, y1] = [Math.min(...slide.y) - half, Math.max(...slide.y) + half]
  // A square around the spots, y pointing down as in the picture.
  const side = Math.max(x1 - x0, y1 - y0) / 2
  const [xc, yc] = [(x0 + x1) / 2, (y0 + y1) / 2]
  across.setv({start: xc - side, end: xc + side, reset_start: xc - side, reset_end: xc + side})
  down.setv({start: yc + side, end: yc - side, reset_start: yc + side, reset_end: yc - side})
  picture.data = slide.picture === null
    ? {url: [], x: [], y: [], w: [], h: []}
    : {url: [slide.picture], x: [0], y: [0], w: [slide.width], h: [slide.height]}
  table.data = {...table.data, slide_pcc: slide.pcc ?? genes.map(() => NaN)}
  kept.indices = Array.from(kept.indices) // the table is drawn anew for rows, not for values
  shown_slide = slide.name
}

function in_words(slide, gene, name, predicted) {
  const parts = [`${name} on ${slide.name}`]
  const pcc = slide.pcc?.[gene]
  if (predicted.every(Number.isNaN)) parts.push("not predicted on this slide")
  else if (pcc !== undefined) parts.push(Number.isFinite(pcc) ? `PCC ${pcc.toFixed(2)}` : "PCC undefined")
  parts.push(slide.units)
  if (slide.verdict) parts.push(slide.verdict)
  return parts.join("; ")
}

export default async function (args, source) {
  const {slides, genes, spots, mappers, table, choose_gene, choose_slide, one_scale, words, radius} = args
  if (source === table.selected && table.selected.indices.length > 0) {
    choose_gene.value = genes[table.selected.indices[0]]
    return // which calls this again
  }
  follow_theme(args)
  const slide = slides.find((one) => one.name === choose_slide.value) ?? slides[0]
  const unpacked = await layers(slide)
  if (choose_slide.value !== slide.name) return // another was chosen meanwhile
  const gene = genes.indexOf(choose_gene.value)
  if (gene < 0) return // still being typed
  if (shown_slide !== slide.name) show_slide(args, slide)
  const predicted = values_of(slide, unpacked, "predicted", gene)
  const nothing = new Float32Array(predicted.length).fill(NaN)
  const measured = slide.layers.measured ? values_of(slide, unpacked, "measured", gene) : nothing
  const values = {
    predicted,
    measured,
    spread: slide.layers.spread ? values_of(slide, unpacked, "spread", gene) : nothing,
    difference: predicted.map((value, i) => value - measured[i]),
  }
  const both = ends([predicted, measured], args.clipped)
  for (const [name, mapper] of Object.entries(mappers)) {
    const together = one_scale.active && (name === "measured" || name === "predicted")
    let [low, high] = together ? both : ends([values[name]], args.clipped)
    if (name === "difference") {
      high = Math.max(Math.abs(low), Math.abs(high)) // no difference is in the middle
      low = -high
    }
    mapper.setv({low, high})
  }
  const shown = {x: slide.x, y: slide.y, id: slide.ids, distance: slide.distance ?? Array.from(nothing)}
  for (const name of Object.keys(spots.data)) if (name in values) shown[name] = values[name]
  spots.data = shown
  for (const glyph of args.glyphs) glyph.radius = {value: (radius.value * slide.spot_px) / 2}
  words.text = `<p role="status" aria-live="polite">${escaped(in_words(slide, gene, genes[gene], predicted))}</p>`
}

// What the page does when another slide or spot is chosen. Bokeh calls the default function with the models of
// report/page/prototypes.py.

const weights_of = new Map() // slide name -> Uint8Array
let shown_slide = null

function show_slide({slides, spots, choose_spot, glyphs}, slide) {
  shown_slide = slide.name
  if (slide.count === 0) {
    spots.data = Object.fromEntries(Object.keys(spots.data).map((name) => [name, []]))
    choose_spot.completions = []
    return
  }
  for (const glyph of glyphs) glyph.radius = {value: 0.45 * slide.spot_px}
  spots.data = {
    x: slide.x,
    y: slide.y,
    id: slide.ids,
    number: slide.nearest.map((k) => (k < 0 ? "none" : k + 1)),
    colour: slide.nearest.map((k) => (k < 0 ? "rgba(0,0,0,0)" : slide.colours[k])),
    genes: slide.nearest.map((k) => (k < 0 ? "" : slide.genes[k].join(", "))),
    attention: slide.nearest.map(() => NaN),
  }
  choose_spot.completions = slide.ids
}

// The spot that stands for the prototype that most spots attend to.
function first_spot(slide) {
  return slide.shown_by[slide.size.indexOf(Math.max(...slide.size))]
}

function card_of(slide, k, share, most) {
  const genes = escaped(slide.genes[k].join(", "))
  const name = `prototype ${k + 1}`
  const picture = slide.windows[k]
    ? `<img src="${slide.windows[k]}" alt="${name}: the tissue at the spot ${escaped(slide.shown_by[k])}">`
    : `<div class="none"></div>`
  const width = most > 0 ? Math.round((100 * share) / most) : 0
  return `<figure style="--own: ${slide.colours[k]}">${picture}<div class="share" style="width: ${width}%"></div>
<figcaption><b>${k + 1}</b>: ${(100 * share).toFixed(1)}%<br>
${slide.size[k] === 1 ? "1 spot" : slide.size[k] + " spots"}<br>
<span class="genes">${genes}</span></figcaption></figure>`
}

function say(words, text) {
  words.text = `<p role="status" aria-live="polite">${escaped(text)}</p>`
}

export default async function (args, source) {
  const {slides, spots, mapper, choose_slide, choose_spot, gallery, words} = args
  follow_theme(args)
  if (source === spots.selected) {
    const [clicked] = spots.selected.indices
    if (clicked !== undefined && spots.data.id[clicked] !== choose_spot.value) choose_spot.value = spots.data.id[clicked]
    return // the change calls this again
  }
  const slide = slides.find((one) => one.name === choose_slide.value) ?? slides[0]
  if (shown_slide !== slide.name) show_slide(args, slide)
  if (slide.count === 0) {
    gallery.text = ""
    say(words, `${slide.name} was predicted by a head without prototypes`)
    return
  }
  if (!weights_of.has(slide.name)) weights_of.set(slide.name, await unpack(slide.weights.data))
  if (choose_slide.value !== slide.name) return // another was chosen meanwhile
  let spot = slide.ids.indexOf(choose_spot.value)
  if (spot < 0) {
    choose_spot.value = first_spot(slide)
    return // which calls this again
  }
  const n = slide.ids.length
  const unpacked = weights_of.get(slide.name)
  const shares = Array.from({length: slide.count}, (_, k) => value_at(slide.weights, unpacked, n, k, spot))
  spots.data = {...spots.data, attention: slide.nearest.map((k) => (k < 0 ? NaN : 100 * shares[k]))}
  if (spots.selected.indices[0] !== spot || spots.selected.indices.length !== 1) spots.selected.indices = [spot]
  const ranked = shares.map((_, k) => k).sort((a, b) => shares[b] - shares[a]).slice(0, args.shown)
  mapper.setv({low: 0, high: Math.max(100 * shares[ranked[0]], 1e-6)})
  gallery.text = `<div class="prototypes">${ranked.map((k) => card_of(slide, k, shares[k], shares[ranked[0]])).join("")}</div>`
  const own = slide.nearest[spot]
  const attends = own < 0
    ? "attends to no prototype"
    : `attends most to prototype ${own + 1} of ${slide.count} (${(100 * shares[own]).toFixed(1)}%)`
  say(words, `${slide.name}: the spot ${slide.ids[spot]} ${attends}; the pictures are the ${ranked.length} that it attends to most`)
}

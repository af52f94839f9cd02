// The page: pictures in, embeddings by the network, the gallery's images by similarity. Nothing leaves it.
"use strict";
(() => {
  const { clamp, halfToEven, resize, resizeNearest, planes, same, forNetwork, cutOut } = maskreidPixels;
  const { facts, packed } = maskreid; // of the files in data/
  const find = (name) => document.getElementById(name);
  const state = { image: null, mask: null, kind: "none", turn: 0 };
  let ready = null;

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function start() {
    const script = new Blob([await unpacked(packed.script)], { type: "text/javascript" });
    const ort = await import(URL.createObjectURL(script));
    Object.assign(ort.env.wasm, { wasmBinary: await unpacked(packed.program), numThreads: 1 });
    const session = async (network) => network && ort.InferenceSession.create(await unpacked(network));
    const [network, segmenter] = [await session(packed.network), await session(packed.segmenter)];
    const rows = new Float32Array((await unpacked(packed.rows)).buffer);
    return { ort, network, segmenter, rows };
  }

  // Pictures.

  async function decoded(source, channels) {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const bitmap = await createImageBitmap(source, options);
    const { width, height } = bitmap;
    if (width * height > facts.most_pixels) throw new Error(`${width} x ${height} pixels are too many`);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const all = context.getImageData(0, 0, width, height).data;
    const data = new Uint8Array(width * height * channels);
    for (let place = 0; place < width * height; place++) {
      for (let c = 0; c < channels; c++) data[place * channels + c] = all[4 * place + c];
      const coloured = all[4 * place] !== all[4 * place + 1] || all[4 * place] !== all[4 * place + 2];
      if (channels === 1 && coloured) throw new Error("a coloured picture; a mask is grey, white = person");
    }
    return { width, height, channels, data };
  }

  function draw(canvas, picture) {
    Object.assign(canvas, { width: picture.width, height: picture.height });
    const pixels = new ImageData(picture.width, picture.height);
    for (let place = 0; place < picture.width * picture.height; place++) {
      for (let c = 0; c < 3; c++)
        pixels.data[4 * place + c] = picture.data[place * picture.channels + c % picture.channels];
      pixels.data[4 * place + 3] = 255;
    }
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(pixels, 0, 0);
  }

  // The person's mask by the pose network: see maskreid_dist/segmentation/pose.py.
  async function segmented({ ort, segmenter }, image) {
    const { side, margin } = facts.segmenter;
    const scale = side / Math.max(image.height * (1 + 2 * margin), image.width);
    const height = Math.max(1, halfToEven(image.height * scale));
    const width = Math.max(1, halfToEven(image.width * scale));
    const top = Math.floor((side - height) / 2), left = Math.floor((side - width) / 2);
    const floats = { ...image, data: Float32Array.from(image.data, (value) => value / 255) };
    const small = resize(floats, width, height);
    const square = new Float32Array(3 * side * side);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        const at = clamp(y - top, height - 1) * width + clamp(x - left, width - 1);
        for (let c = 0; c < 3; c++) square[(c * side + y) * side + x] = clamp(small.data[3 * at + c], 1);
      }
    const input = new ort.Tensor("float32", square, [1, 3, side, side]);
    const { mask } = await segmenter.run({ image: input });
    const inside = new Float32Array(width * height);
    for (let y = 0; y < height; y++)
      inside.set(mask.data.subarray((y + top) * side + left, (y + top) * side + left + width), y * width);
    const own = resize({ width, height, channels: 1, data: inside }, image.width, image.height);
    return { ...own, data: Uint8Array.from(own.data, (value) => halfToEven(255 * clamp(value, 1))) };
  }

  async function maskOf(parts, image) {
    if (state.mask) {
      const fits = state.mask.width === image.width && state.mask.height === image.height;
      return fits ? state.mask : resizeNearest(state.mask, image.width, image.height, true);
    }
    return parts.segmenter ? segmented(parts, image) : same(image.width, image.height, 255);
  }

  // The search.

  async function embed({ ort, network }, pair) {
    const [height, width] = facts.size.crop;
    const { embedding } = await network.run({
      image: new ort.Tensor("uint8", planes(pair.image), [1, 3, height, width]),
      mask: new ort.Tensor("uint8", pair.mask.data, [1, 1, height, width]),
    });
    return embedding.data;
  }

  function ranked(rows, query) {
    const similarity = facts.gallery.map((_, row) => {
      let sum = 0;
      for (let n = 0; n < query.length; n++) sum += rows[row * query.length + n] * query[n];
      return sum;
    });
    const order = similarity.map((_, row) => row).sort((a, b) => similarity[b] - similarity[a] || a - b);
    return order.slice(0, facts.top).map((row) => ({ row, similarity: similarity[row] }));
  }

  function item({ row, similarity }, rank) {
    const about = facts.gallery[row], shown = find("item").content.cloneNode(true);
    const [picture, place, person] = ["img", "b", "span"].map((name) => shown.querySelector(name));
    picture.src = about.picture;
    picture.alt = picture.title = about.key;
    shown.querySelector("li").dataset.key = about.key;
    place.textContent = similarity.toFixed(4);
    person.textContent = `${about.person}, camera ${about.camera}`;
    if (facts.calibration) {
      const odds = facts.calibration.slope * similarity + facts.calibration.offset;
      person.textContent += `, match ${(100 / (1 + Math.exp(-odds))).toFixed(0)} %`;
    }
    shown.querySelector("i").textContent = rank + 1;
    return shown;
  }

  const MASKS = {
    given: "Mask: your file.",
    example: "Mask: of the shards.",
    pose: "Mask: made here by the pose network. A file of your own takes its place.",
    nobody: "Mask: the pose network found nobody, so the masked stream is empty. Give a mask's file.",
    none: "No mask: the whole picture counts as person, which costs accuracy. Give a mask's file too.",
  };

  async function show() {
    const turn = ++state.turn;
    say("computing ...");
    const started = performance.now(), parts = await (ready ??= start());
    const whole = await maskOf(parts, state.image);
    const pair = forNetwork(state.image, whole, facts.size);
    const embedding = await embed(parts, pair);
    if (turn !== state.turn) return; // another picture was given meanwhile
    draw(find("seen"), pair.image);
    draw(find("mask"), pair.mask);
    draw(find("cut"), cutOut(pair.image, pair.mask, facts.mean_colour));
    const made = pair.mask.data.some((value) => value) ? "pose" : "nobody";
    find("mask-note").textContent = MASKS[state.mask || !parts.segmenter ? state.kind : made];
    find("list").replaceChildren(...ranked(parts.rows, embedding).map(item));
    find("result").hidden = false;
    say(`${Math.round(performance.now() - started)} ms`);
  }

  const say = (text) => { find("status").textContent = text; };

  async function attempt(name, work) {
    try { await work(); } catch (error) { say(`${name}: ${error.message}`); }
  }

  const readings = {
    crop: async (file) => {
      const image = await decoded(file, 3);
      Object.assign(state, { image, mask: null, kind: "none" });
      await show();
    },
    "mask-file": async (file) => {
      const mask = await decoded(file, 1);
      Object.assign(state, { mask, kind: "given" });
      if (state.image) await show(); else say("mask read; now a crop");
    },
  };

  for (const [name, read] of Object.entries(readings)) {
    const field = find(name), zone = field.closest("label");
    const take = (file) => file && attempt(file.name, () => read(file));
    field.addEventListener("change", () => take(field.files[0]));
    field.addEventListener("click", () => { field.value = ""; }); // the same file once more is a change too
    zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      take(event.dataTransfer.files[0]);
    });
  }
  for (const event of ["dragover", "drop"]) addEventListener(event, (dropped) => dropped.preventDefault());

  for (const example of facts.examples) {
    const button = document.createElement("button"), picture = document.createElement("img");
    button.type = "button";
    picture.src = example.image;
    picture.alt = `example ${example.key}`;
    button.append(picture);
    button.addEventListener("click", () => attempt(example.key, async () => {
      const read = async (url, channels) => decoded(await (await fetch(url)).blob(), channels);
      const [image, mask] = [await read(example.image, 3), await read(example.mask, 1)];
      Object.assign(state, { image, mask, kind: "example" });
      await show();
    }));
    find("examples").append(button);
  }
  find("examples-part").hidden = !facts.examples.length;
  say("ready for a crop");
})();

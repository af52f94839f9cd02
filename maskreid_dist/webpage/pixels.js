// Pixels as the program has them: what maskreid_dist/data/transforms.py and gallery/extractor.py do, again.
// A picture is {width, height, channels, data}: 8 bits, or floats, row by row, a pixel's channels together.
"use strict";
const maskreidPixels = (() => {
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  const byte = (value) => clamp(value, 255);

  // Where an output pixel looks, and how much of each: the triangle of antialiased bilinear resizing.
  function windows(from, to) {
    const scale = from / to, support = Math.max(scale, 1), found = [];
    for (let place = 0; place < to; place++) {
      const centre = scale * (place + 0.5);
      const first = Math.max(Math.trunc(centre - support + 0.5), 0);
      const length = Math.min(Math.trunc(centre + support + 0.5), from) - first;
      const weights = Array.from({ length }, (_, n) =>
        Math.max(0, 1 - Math.abs((n + first - centre + 0.5) / support)));
      const sum = weights.reduce((a, b) => a + b, 0);
      found.push({ first, weights: weights.map((weight) => weight / sum) });
    }
    return found;
  }

  // Of 8 bits torch takes the weights as 16-bit integers, as fine as the largest of them allows.
  function wholeNumbers(found) {
    const largest = Math.max(...found.flatMap((one) => one.weights));
    let bits = 0;
    while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
    for (const one of found) one.weights = one.weights.map((weight) => Math.trunc(0.5 + weight * 2 ** bits));
    return bits;
  }

  // One direction: lines of `from` pixels become lines of `to`.
  function resizeLines(data, lines, from, to, stepLine, stepPixel, result, toLine, toPixel, channels) {
    const found = windows(from, to), whole = data instanceof Uint8Array;
    const bits = whole ? wholeNumbers(found) : 0;
    const half = whole ? 2 ** (bits - 1) : 0;
    for (let line = 0; line < lines; line++)
      for (let place = 0; place < to; place++)
        for (let channel = 0; channel < channels; channel++) {
          const { first, weights } = found[place];
          let sum = half, at = line * stepLine + first * stepPixel + channel;
          for (const weight of weights) { sum += data[at] * weight; at += stepPixel; }
          result[line * toLine + place * toPixel + channel] = whole ? byte(Math.floor(sum / 2 ** bits)) : sum;
        }
  }

  function resize(picture, width, height) {
    const { channels } = picture, Kind = picture.data.constructor;
    let { data } = picture;
    if (width !== picture.width) {
      const wide = new Kind(width * picture.height * channels);
      resizeLines(data, picture.height, picture.width, width, picture.width * channels, channels,
        wide, width * channels, channels, channels);
      data = wide;
    }
    if (height !== picture.height) {
      const high = new Kind(width * height * channels);
      resizeLines(data, width, picture.height, height, channels, width * channels,
        high, channels, width * channels, channels);
      data = high;
    }
    return { width, height, channels, data };
  }

  // The nearest pixel of each output pixel. Of its corner, as torch does it; or, where a mask is brought to
  // its image's size, of its centre, as Pillow does it: the places are summed up, roundings and all.
  function nearest(from, to, centre) {
    const scale = centre ? from / to : Math.fround(from / to), found = [];
    let at = centre ? 0.5 * scale : 0;
    for (let place = 0; place < to; place++) {
      found.push(Math.min(Math.floor(at), from - 1));
      at = centre ? at + scale : Math.fround((place + 1) * scale);
    }
    return found;
  }

  function resizeNearest(picture, width, height, centre = false) {
    const { channels } = picture, data = new picture.data.constructor(width * height * channels);
    const rows = nearest(picture.height, height, centre), columns = nearest(picture.width, width, centre);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const at = rows[y] * picture.width + columns[x];
        for (let c = 0; c < channels; c++)
          data[(y * width + x) * channels + c] = picture.data[at * channels + c];
      }
    return { width, height, channels, data };
  }

  const halfToEven = (value) => {
    const low = Math.floor(value);
    return value - low === 0.5 ? low + (low % 2) : Math.round(value);
  };

  function cropCentre(picture, width, height) {
    const { channels } = picture, data = new picture.data.constructor(width * height * channels);
    const top = halfToEven((picture.height - height) / 2), left = halfToEven((picture.width - width) / 2);
    for (let y = 0; y < height; y++) {
      const start = ((y + top) * picture.width + left) * channels;
      data.set(picture.data.subarray(start, start + width * channels), y * width * channels);
    }
    return { width, height, channels, data };
  }

  // (C, H, W), as the network has it.
  function planes({ width, height, channels, data }) {
    const found = new data.constructor(data.length), size = width * height;
    for (let place = 0; place < size; place++)
      for (let c = 0; c < channels; c++) found[c * size + place] = data[place * channels + c];
    return found;
  }

  const same = (width, height, value) =>
    ({ width, height, channels: 1, data: new Uint8Array(width * height).fill(value) });

  // What the network is given: image and mask of one size.
  function forNetwork(image, mask, size) {
    const [high, wide] = size.resize, [height, width] = size.crop;
    return {
      image: cropCentre(resize(image, wide, high), width, height),
      mask: cropCentre(resizeNearest(mask, wide, high), width, height),
    };
  }

  // What the masked stream sees: the mean colour where nobody is.
  function cutOut(image, mask, colour) {
    const data = new Uint8Array(image.data.length);
    for (let place = 0; place < mask.data.length; place++)
      for (let c = 0; c < 3; c++) {
        const share = mask.data[place] / 255;
        data[3 * place + c] = Math.round(share * image.data[3 * place + c] + (1 - share) * colour[c]);
      }
    return { ...image, data };
  }

  return { clamp, halfToEven, resize, resizeNearest, cropCentre, planes, same, forNetwork, cutOut };
})();

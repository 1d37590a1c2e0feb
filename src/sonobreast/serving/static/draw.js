"use strict";
// Pictures: the image with its layers on a canvas, and the picture that is downloaded. No network, no page.

function bytesOf(base64, type = "image/png") {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Blob([bytes], { type });
}

// The bitmaps of one result: the image, the map of one class, the mask; null where there is none.
async function bitmapsOf(shown, name) {
  const layers = shown.result.layers, map = layers.maps[name];
  const open = (source) => (source ? createImageBitmap(source) : null);
  const [image, cam, mask] = await Promise.all([
    open(layers.picture ? bytesOf(layers.picture) : shown.file),
    open(map ? bytesOf(map.png) : null),
    open(layers.mask ? bytesOf(layers.mask) : null),
  ]);
  return { image, cam, mask };
}

function closeBitmaps(bitmaps) {
  for (const bitmap of Object.values(bitmaps)) if (bitmap) bitmap.close();
}

function paint(context, x, y, width, height, bitmaps, mapShare, maskShare) {
  context.fillStyle = "#000"; // what is transparent was predicted as black
  context.fillRect(x, y, width, height);
  context.drawImage(bitmaps.image, x, y, width, height);
  for (const [bitmap, share] of [[bitmaps.cam, mapShare], [bitmaps.mask, maskShare]]) {
    if (!bitmap || !share) continue;
    context.globalAlpha = share;
    context.drawImage(bitmap, x, y, width, height);
    context.globalAlpha = 1;
  }
}

function wrapped(context, text, width) {
  const lines = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line ? line + " " + word : word;
    if (line && context.measureText(longer).width > width) { lines.push(line); line = word; } else line = longer;
  }
  return line ? [...lines, line] : lines;
}

// Image and marked image side by side, words below: what is downloaded as PNG.
async function drawSheet(shown, name, mapShare, maskShare, lines) {
  const { width, height } = shown.result, bitmaps = await bitmapsOf(shown, name);
  const half = Math.max(width, 360), gap = 8, inner = 2 * half + gap - 24;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const font = "15px system-ui, 'Segoe UI', Arial, sans-serif";
  context.font = font;
  const rows = lines.flatMap((line) => wrapped(context, line, inner));
  canvas.width = 2 * half + gap;
  canvas.height = height + 22 * rows.length + 20;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  paint(context, 0, 0, width, height, bitmaps, 0, 0);
  paint(context, half + gap, 0, width, height, bitmaps, mapShare, maskShare);
  context.font = font;
  context.fillStyle = "#1c2330";
  rows.forEach((row, k) => context.fillText(row, 12, height + 26 + 22 * k));
  closeBitmaps(bitmaps);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

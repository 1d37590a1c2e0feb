"use strict";
// A readable view of openapi.json; everything is put in as text.

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text.replaceAll("`", "");
  element.append(...children);
  return element;
}
const name = (ref) => ref.split("/").pop();
function kind(s) {
  if (!s) return "";
  if (s.$ref) return name(s.$ref);
  if (s.anyOf) return s.anyOf.map(kind).join(" or ");
  if (s.type === "array") return "list of " + kind(s.items);
  if (s.type === "object" && s.additionalProperties && s.additionalProperties !== true) return "by name: " + kind(s.additionalProperties);
  return s.type || "anything";
}
function table(head, rows) {
  const body = make("table", "", make("tr", "", ...head.map((h) => make("th", h))));
  for (const row of rows) body.append(make("tr", "", ...row.map((c, k) => (k ? make("td", c) : make("td", "", make("code", c))))));
  const box = make("div", "", body);
  box.className = "scroll";
  return box;
}
async function main() {
  const spec = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = spec.info.description.replaceAll("`", "");
  document.getElementById("example").textContent = "curl -F files=@scan.png '" + location.origin + "/v1/predict?spacing_mm=0.1'";
  const paths = document.getElementById("paths"), schemas = document.getElementById("schemas");
  const first = Object.entries(spec.paths).sort(([a], [b]) => (b === "/v1/predict") - (a === "/v1/predict"));
  for (const [path, methods] of first) for (const [method, o] of Object.entries(methods)) {
    paths.append(make("h2", method.toUpperCase() + " " + path), make("p", o.summary + "."));
    if (o.requestBody) paths.append(make("p", "Body: multipart/form-data with one or more parts named files."));
    if (o.parameters) paths.append(table(["query", "type", "meaning"], o.parameters.map((p) => [p.name, kind(p.schema), p.description || p.schema.description || ""])));
    paths.append(table(["status", "meaning", "answer"], Object.entries(o.responses).map(([code, r]) => [code, r.description, kind(r.content && r.content["application/json"] && r.content["application/json"].schema)])));
  }
  for (const [title, s] of Object.entries(spec.components.schemas)) {
    if (/^HTTPValidationError|^ValidationError/.test(title)) continue;
    schemas.append(make("h3", title), make("p", (s.description || "").split("\n")[0]));
    schemas.append(table(["field", "type", "meaning"], Object.entries(s.properties || {}).map(([k, v]) => [k, kind(v), v.description || ""])));
  }
}
main();

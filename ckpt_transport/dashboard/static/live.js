// Every second the part of the page that changes is fetched, and shown where it has changed.
"use strict";

const SECOND = 1000;
const part = document.getElementById("live");
const pulse = document.getElementById("pulse");
let shown = "";
let pressed = false; // a click would be lost if what it began on were replaced before it ended

addEventListener("pointerdown", () => { pressed = true; });
for (const ending of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(ending, () => { setTimeout(() => { pressed = false; }); });
}

async function refresh() {
  const answer = await fetch("/live");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const html = await answer.text();
  if (html !== shown && !pressed && getSelection().isCollapsed) {
    const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    part.innerHTML = html;
    if (focused) document.getElementById(focused)?.focus();
    shown = html;
  }
}

async function go() {
  if (!document.hidden) {
    try {
      await refresh();
      pulse.textContent = `live, ${new Date().toLocaleTimeString()}`;
      pulse.classList.remove("bad");
      document.documentElement.dataset.refreshed = Number(document.documentElement.dataset.refreshed ?? 0) + 1;
    } catch {
      pulse.textContent = "the dashboard does not answer";
      pulse.classList.add("bad");
    }
  }
  setTimeout(go, SECOND);
}

setTimeout(go, SECOND);

"use strict";
// Figures move as the node's counters do: one event for each reading, for every page that is open.
const watched = document.body.dataset.service;
const events = new EventSource("/events" + (watched ? "?service=" + encodeURIComponent(watched) : ""));
const trouble = document.getElementById("trouble");
const moving = document.getElementById("moving");

function show(root, name, text) {
  for (const each of root.querySelectorAll(`[data-${name}]`)) {
    if (each.textContent !== text) each.textContent = text;
  }
}

events.onopen = () => { moving.textContent = "Figures move with the node's counters."; };
events.onerror = () => { moving.textContent = "Figures stand still: the connection is lost; trying again."; };
events.onmessage = (event) => {
  const [all, endpoints] = event.data.split("\n").map((line) => JSON.parse(line));
  trouble.textContent = all.trouble;
  trouble.hidden = !all.trouble;
  for (const row of document.querySelectorAll("main [data-service]")) {
    const moved = all.services[row.dataset.service];
    if (!moved) continue;
    show(row, "rate", moved[0]);
    show(row, "refused", moved[1]);
    const line = row.querySelector("[data-line]");
    if (line) line.setAttribute("points", moved[2]);
  }
  const sum = Object.values(endpoints).reduce((one, other) => one + other, 0);
  for (const each of document.querySelectorAll("[data-endpoint]")) {
    const count = endpoints[each.dataset.endpoint];
    if (count !== undefined) each.textContent = String(count);
  }
  for (const each of document.querySelectorAll("[data-share]")) {
    const count = endpoints[each.dataset.share];
    if (count !== undefined && sum) each.textContent = Math.round(100 * count / sum) + " %";
  }
};
window.addEventListener("pagehide", () => events.close());

"use strict";
{
  const form = document.querySelector("#search");
  const results = document.querySelector("#results");
  const status = document.querySelector("#status");
  const say = (text) => (status.textContent = text);

  // A search replaces what was found, and leaves what is being typed.
  let asked = null;
  const search = async (button) => {
    const query = new FormData(form, button);
    const size = [...query.values()].reduce((sum, value) => sum + (value.size ?? value.length), 0);
    if (size > form.dataset.largest) return say("The image is too large; choose a smaller one.");
    asked?.abort();
    asked = new AbortController();
    results.ariaBusy = "true";
    say("Searching…");
    try {
      const answer = await fetch(form.action, { method: "POST", body: query, signal: asked.signal });
      if (answer.redirected) return location.assign(answer.url); // to the token
      if (!answer.headers.get("content-type").startsWith("text/html")) return say((await answer.json()).error);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const id of ["chips", "hits"]) document.getElementById(id).replaceWith(page.getElementById(id));
      say(page.querySelector("#status").textContent);
      form.querySelector("[type=file]").value = "";
      showSelection();
      if (!button?.classList.contains("go")) document.querySelector("#found-title").focus();
    } catch (error) {
      if (error.name !== "AbortError") say("The server does not answer; is it running?");
    } finally {
      results.ariaBusy = "false";
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search(event.submitter);
  });

  // One empty field for a further phrasing is always there.
  form.querySelector(".phrasings").addEventListener("input", ({ currentTarget: fields }) => {
    const last = fields.lastElementChild;
    if (!last.value || fields.querySelectorAll("input").length >= 10) return;
    const next = last.cloneNode();
    next.value = "";
    next.autofocus = false;
    next.ariaLabel = next.placeholder = "the same in other words";
    fields.append(next);
  });

  // Why an image matches is shown above the results.
  const panel = document.querySelector("#why");
  results.addEventListener("click", async (event) => {
    const link = event.target.closest("a.why");
    if (!link || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const before = status.textContent;
    say("Explaining…");
    const answer = await fetch(link.href).catch(() => null);
    if (!answer) return say("The server does not answer; is it running?");
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    panel.querySelector("div").replaceChildren(...page.querySelector("main").children);
    panel.showModal();
    say(before);
  });
  panel.addEventListener("click", (event) => {
    if (event.target === panel) panel.close();
  });

  // "/" leads to the search box, arrows from picture to picture.
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (key === "/" && !target.closest("input, select, dialog")) {
      event.preventDefault();
      form.querySelector("[name=texts]").focus();
    }
    if (!target.closest("#hits .picture")) return;
    const pictures = [...document.querySelectorAll("#hits .picture")];
    const top = (picture) => picture.closest("li").offsetTop;
    const wide = pictures.filter((picture) => top(picture) === top(pictures[0])).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[key];
    const next = step && pictures[pictures.indexOf(target) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });

  // The selection lasts from search to search, until the tab is closed.
  const STORED = `selection of ${location.host}`;
  const selected = new Map(JSON.parse(sessionStorage.getItem(STORED) ?? "[]"));
  const bar = document.querySelector("#selection");
  const showSelection = () => {
    for (const box of document.querySelectorAll("[data-hit]")) {
      box.closest("label").hidden = false;
      box.checked = selected.has(JSON.parse(box.dataset.hit).id);
    }
    bar.hidden = !selected.size;
    bar.querySelector("span").textContent = `${selected.size} selected`;
    sessionStorage.setItem(STORED, JSON.stringify([...selected]));
  };
  results.addEventListener("change", ({ target }) => {
    if (!target.dataset.hit) return;
    const hit = JSON.parse(target.dataset.hit);
    if (target.checked) selected.set(hit.id, hit);
    else selected.delete(hit.id);
    showSelection();
  });

  // A text that a spreadsheet would run as a formula is marked as text.
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const asCsv = (hits) => {
    const columns = [...new Set(hits.flatMap((hit) => Object.keys(hit.metadata)))];
    const rows = hits.map((hit) => [hit.id, hit.uri, hit.score, hit.probability, ...columns.map((name) => hit.metadata[name])]);
    return [["id", "uri", "score", "probability", ...columns], ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
  };
  bar.addEventListener("click", ({ target }) => {
    const kind = target.dataset.as;
    if (!kind) return;
    if (kind === "none") {
      selected.clear();
      return showSelection();
    }
    const hits = [...selected.values()];
    const text = kind === "csv" ? asCsv(hits) : JSON.stringify(hits, null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = `selection.${kind}`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  showSelection();
}

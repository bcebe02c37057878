// Draws what the page holds as data. All text goes in as text, never as markup.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const names = data.groups.map((group) => group.name);
  const metric = data.metrics[0];
  const MOST_DRAWN = 6, MOST_CLASSES = 30, MOST_LISTED = 25;
  // six colours by six shapes, and a dash for every further six groups
  const SHAPES = {
    circle: "M17 3.5a3.5 3.5 0 1 0 .01 0z", square: "M13.5 3.5h7v7h-7z", "triangle-up": "M17 3l4 7.5h-8z",
    diamond: "M17 2l4 5-4 5-4-5z", cross: "M15.5 3h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "triangle-down": "M13 3.5h8l-4 7.5z",
  };
  const DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3]];
  const colour = (group) => `var(--g${group % 6})`;
  const dash = (group) => DASHES[Math.floor(group / 6) % DASHES.length];
  const shape = (group) => Object.keys(SHAPES)[group % 6];
  const state = {
    drawn: new Set([...names.keys()].filter((group) => group < MOST_DRAWN)),
    pair: [0, Math.min(1, names.length - 1)],
    listed: MOST_LISTED,
  };
  if (data.pairs.length) state.pair = [data.pairs[0].first, data.pairs[0].second].map((name) => names.indexOf(name));

  // What is said of numbers

  const percent = (value, digits = 1) => (value == null ? "–" : `${(100 * value).toFixed(digits)} %`);
  const plain = (value) => {
    if (value == null) return "–";
    const text = Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : `${Number(value.toPrecision(4))}`;
    return text.replace("-", "−");
  };
  const shown = (value, share) => (share ? percent(value, 2) : plain(value));
  const points = (value) => {
    const text = (100 * Math.abs(value)).toFixed(1);
    return (/[1-9]/.test(text) ? (value > 0 ? "+" : "−") : "") + text;
  };

  // Elements

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value != null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child != null));
    return element;
  }

  // cells are texts, or [text, number to sort by]; the first `heads` of a row name it
  let tables = 0;
  function table(caption, header, rows, heads = 1) {
    const id = `table-${(tables += 1)}`;
    const cell = (value, place) => {
      const [text, key] = Array.isArray(value) ? value : [value];
      if (place < heads) return make("th", { scope: "row" }, text);
      return make("td", Array.isArray(value) ? { class: "number", "data-key": key ?? "" } : {}, text);
    };
    return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": id },
      make("table", { class: "sortable" },
        make("caption", { id }, caption),
        make("thead", {}, make("tr", {}, ...header.map((name, place) =>
          make("th", { scope: "col", class: rows.length && Array.isArray(rows[0][place]) ? "number" : null },
            make("button", { type: "button" }, name))))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell))))));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".sortable th button");
    if (!button) return;
    const head = button.closest("th"), body = button.closest("table").tBodies[0];
    const place = head.cellIndex;
    const key = (row) => {
      const cell = row.cells[place];
      if (!("key" in cell.dataset)) return cell.textContent;
      return cell.dataset.key === "" ? null : Number(cell.dataset.key);
    };
    const rows = [...body.rows];
    const numbers = rows.some((row) => typeof key(row) === "number");
    const before = head.getAttribute("aria-sort");
    // the largest number first, the first letter first
    const ascending = before ? before !== "ascending" : !numbers;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    rows.sort((a, b) => {
      const [one, two] = [key(a), key(b)];
      if (one === null || two === null) return (one === null) - (two === null); // what is missing comes last
      const order = numbers ? one - two : one.localeCompare(two, "en", { numeric: true });
      return ascending ? order : -order;
    });
    body.append(...rows);
  });

  // Charts

  const CONFIG = {
    background: null, font: "system-ui, sans-serif", padding: { left: 2, top: 8, right: 12, bottom: 2 },
    view: { stroke: null },
    axis: {
      labelColor: "var(--soft)", titleColor: "var(--soft)", gridColor: "var(--line)", domainColor: "var(--line)",
      tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
    },
    text: { color: "var(--ink)", fontSize: 12 },
  };
  const byGroup = {
    color: { field: "group", type: "nominal", legend: null, scale: { domain: names, range: names.map((_, i) => colour(i)) } },
    shape: { field: "group", type: "nominal", legend: null, scale: { domain: names, range: names.map((_, i) => shape(i)) } },
    strokeDash: { field: "group", type: "nominal", legend: null, scale: { domain: names, range: names.map((_, i) => dash(i)) } },
  };
  const LABELS = { align: "left", baseline: "bottom", dy: -9, limit: { expr: "width" } };

  const builders = {};
  const views = new Map();
  // a chart says in words what it shows, and has its numbers as a table below it
  async function draw(name) {
    const figure = document.querySelector(`[data-chart="${name}"]`);
    if (!figure) return;
    const { spec, caption, rows, header, heads } = builders[name]();
    if (!figure.firstChild) {
      figure.append(make("div", { class: "chart" }), make("figcaption"),
        make("details", {}, make("summary", {}, "As a table"), make("div")));
    }
    const [chart, text, details] = figure.children;
    text.textContent = caption;
    details.lastChild.replaceChildren(table(caption, header, rows, heads));
    views.get(name)?.finalize(); // else it goes on drawing, unseen, whenever the window changes
    views.delete(name);
    // Vega warns of marks without data
    spec.layer = spec.layer.filter((layer) => (layer.data ?? spec.data).values.length);
    if (!spec.layer.length) {
      chart.replaceChildren(make("p", { class: "missing" }, "There is nothing to draw for these groups."));
      return;
    }
    views.set(name, await vegaEmbed(chart, { width: "container", description: caption, ...spec },
      { actions: false, renderer: "svg", mode: "vega-lite", config: CONFIG }));
  }

  builders.differences = () => {
    const unit = data.share ? "points" : metric;
    const scale = data.share ? 100 : 1;
    const values = data.shown_pairs.flatMap((place) => {
      const pair = data.pairs[place];
      const name = `${pair.first} − ${pair.second}`;
      return [["other runs", pair.repeats], ["other documents", pair.documents]]
        .filter(([, test]) => test && test.interval)
        .map(([of, test]) => ({ name, of, at: scale * test.difference, low: scale * test.interval[0], high: scale * test.interval[1] }));
    });
    const order = [...new Set(values.map((one) => one.name))];
    const y = { field: "name", type: "nominal", sort: order, axis: null };
    const yOffset = { field: "of", sort: ["other runs", "other documents"] };
    const domain = yOffset.sort;
    const kind = { field: "of", type: "nominal", title: null, legend: { orient: "top", labelColor: "var(--ink)", labelFontSize: 12 } };
    const encoding = { y, yOffset, color: { ...kind, scale: { domain, range: ["var(--g0)", "var(--g1)"] } } };
    const tooltip = [{ field: "name", title: "of" }, { field: "of", title: "would show" },
      ...["at", "low", "high"].map((field) => ({ field, type: "quantitative", format: "+.2f", title: { at: "difference" }[field] }))];
    return {
      caption: `Difference in ${metric} (${unit}) with 95 % intervals: where it would lie with other runs, and with other documents. `
        + "An interval that crosses zero shows no difference.",
      header: ["difference of", "over", "difference", "low", "high"], heads: 2,
      rows: values.map((one) => [one.name, one.of, ...["at", "low", "high"].map((field) => [plain(one[field]), one[field]])]),
      spec: {
        data: { values }, height: 54 * order.length,
        layer: [
          { mark: { type: "rule", color: "var(--soft)" }, encoding: { x: { datum: 0 } } },
          { mark: { type: "rule", strokeWidth: 2.5 }, encoding: { ...encoding, x: { field: "low", type: "quantitative", title: `difference, ${unit}`, scale: { padding: 12 }, axis: { tickCount: 8 } }, x2: { field: "high" }, tooltip } },
          { mark: { type: "point", filled: true, size: 110, opacity: 1 }, encoding: { ...encoding, x: { field: "at", type: "quantitative" }, tooltip,
            shape: { ...kind, scale: { domain, range: ["circle", "diamond"] } } } },
          // names over the lines: once as the paper behind, once as ink
          ...[{ stroke: "var(--page)", strokeWidth: 5, strokeJoin: "round" }, {}].map((ink) => ({
            transform: [{ aggregate: [], groupby: ["name"] }], mark: { type: "text", ...LABELS, dy: -16, ...ink },
            encoding: { y, x: { value: 0 }, text: { field: "name" } } })),
        ],
      },
    };
  };

  builders.cost = () => {
    const axis = data.costs.axes[Number(document.getElementById("axis").value)];
    const scale = axis.name === "memory/peak_bytes" ? 2 ** -20 : 1;
    const values = names.map((group, place) => ({ group, place, ...data.groups[place].figures }))
      .filter((one) => one[axis.name])
      .map((one) => ({
        group: one.group, place: one.place, cost: scale * one[axis.name].mean, value: one[metric].mean,
        low: one[metric].mean - (one[metric].spread ?? 0), high: one[metric].mean + (one[metric].spread ?? 0), sd: one[metric].spread,
      }));
    const drawn = values.filter((one) => state.drawn.has(one.place));
    const front = axis.front.map((place) => values.find((one) => one.place === place));
    const costs = values.map((one) => one.cost);
    const [least, most] = [Math.min(...costs), Math.max(...costs)];
    const log = least > 0 && most > 10 * least;
    const middle = log ? Math.sqrt(least * most) : (least + most) / 2;
    const x = { field: "cost", type: "quantitative", title: axis.title, scale: { type: log ? "log" : "linear", zero: false, padding: 25, nice: false } };
    const y = { field: "value", type: "quantitative", title: metric, scale: { zero: false, padding: 15 }, axis: { format: data.share ? ".4~p" : "~g" } };
    const tooltip = [{ field: "group" }, { field: "cost", title: axis.title, type: "quantitative", format: ",.4~g" },
      { field: "value", title: metric, type: "quantitative", format: data.share ? ".2%" : ".4~g" }, { field: "sd", type: "quantitative", format: data.share ? ".2%" : ".3~g" }];
    const label = (align, dx, test) => ({ data: { values: front.filter(test) }, mark: { type: "text", align, dx, dy: -10, limit: 180 },
      encoding: { x, y, text: { field: "group" } } });
    return {
      caption: `${metric} against ${axis.title}, means over runs with their standard deviation. The line is the Pareto front: `
        + `no group is as cheap and better than ${front.map((one) => one.group).join("; ")}. Grey rings are groups that are not ticked.`,
      header: ["group", axis.title, metric, "sd", "on the front"],
      rows: values.map((one) => [one.group, [plain(one.cost), one.cost], [shown(one.value, data.share), one.value],
        [one.sd == null ? "–" : shown(one.sd, data.share), one.sd], axis.front.includes(one.place) ? "yes" : "no"]),
      spec: {
        height: 320,
        layer: [
          { data: { values: front }, mark: { type: "line", interpolate: "step-after", color: "var(--soft)", strokeDash: [3, 3] }, encoding: { x, y } },
          { data: { values: values.filter((one) => !state.drawn.has(one.place)) }, mark: { type: "point", color: "var(--soft)", opacity: 0.7, size: 40 }, encoding: { x, y, tooltip } },
          { data: { values: drawn }, mark: { type: "rule", strokeWidth: 1.5 }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: byGroup.color } },
          { data: { values: drawn }, mark: { type: "point", filled: true, size: 130, opacity: 1 }, encoding: { x, y, color: byGroup.color, shape: byGroup.shape, tooltip } },
          label("left", 8, (one) => one.cost <= middle),
          label("right", -8, (one) => one.cost > middle),
        ],
      },
    };
  };

  builders.curves = () => {
    const figure = data.curves.figures[Number(document.getElementById("figure").value)];
    const all = data.curves.lines.filter((line) => line.figure === figure.name).flatMap((line) =>
      line.points.map(([epoch, mean, low, high, runs]) => ({ group: names[line.group], place: line.group, epoch, mean, low, high, runs })));
    const values = all.filter((one) => state.drawn.has(one.place));
    const last = Math.max(...all.map((one) => one.epoch));
    const format = figure.share ? ".4~p" : "~g";
    const step = Math.ceil(last / 10);
    const epochs = [...Array(last).keys()].map((epoch) => epoch + 1).filter((epoch) => epoch % step === 0 || epoch === 1);
    const x = { field: "epoch", type: "quantitative", title: "epoch", scale: { domain: [1, Math.max(last, 2)], nice: false }, axis: { values: epochs, format: "d" } };
    const y = { type: "quantitative", title: figure.name, scale: { zero: false }, axis: { format } };
    const tooltip = [{ field: "group" }, { field: "epoch" }, ...["mean", "low", "high"].map((field) => (
      { field, type: "quantitative", format: figure.share ? ".2%" : ".4~g", title: { low: "least", high: "greatest" }[field] })), { field: "runs" }];
    const several = all.some((one) => one.runs > 1);
    return {
      caption: `${figure.name} by epoch, ${figure.lower ? "less" : "more"} is better: means over the runs that came so far`
        + (several ? "; the band reaches from the least to the greatest of them." : "; one run each, so that there is no band."),
      header: ["group", "epoch", "mean", "least", "greatest", "runs"],
      rows: all.map((one) => [one.group, [`${one.epoch}`, one.epoch], ...["mean", "low", "high"].map((field) => [shown(one[field], figure.share), one[field]]), [`${one.runs}`, one.runs]]),
      spec: {
        data: { values }, height: 320, encoding: { x, color: byGroup.color },
        layer: [
          { mark: { type: "area", opacity: 0.16 }, encoding: { y: { ...y, field: "low" }, y2: { field: "high" } } },
          { mark: { type: "line", strokeWidth: 2 }, encoding: { y: { ...y, field: "mean" }, strokeDash: byGroup.strokeDash } },
          { mark: { type: "point", filled: true, opacity: 1, size: last > 30 ? 12 : 45 }, encoding: { y: { ...y, field: "mean" }, shape: byGroup.shape, tooltip } },
        ],
      },
    };
  };

  const theSet = () => data.classes.sets[Number(document.getElementById("set")?.value ?? 0)];
  const sides = (groups) => state.pair.map((place) => groups.find((one) => one.group === place));

  builders["by-class"] = () => {
    const set = theSet(), kind = document.getElementById("by-class").value;
    const [one, two] = sides(set.groups);
    const [first, second] = state.pair.map((place) => names[place]);
    const rows = set.classes.map((name, i) => ({
      class: name, support: (one ?? two)?.support[i], one: one?.[kind][i], two: two?.[kind][i],
      gap: one && two ? one[kind][i] - two[kind][i] : null,
    }));
    const drawn = [...rows].sort((a, b) => Math.abs(b.gap) - Math.abs(a.gap)).slice(0, MOST_CLASSES);
    const order = rows.filter((row) => drawn.includes(row)).map((row) => row.class);
    const long = drawn.flatMap((row) => [["one", first], ["two", second]].filter(([side]) => row[side] != null)
      .map(([side, group]) => ({ class: row.class, side, group, value: row[side] })));
    const title = { f1: "F1", precision: "precision", recall: "recall" }[kind];
    const y = { field: "class", type: "nominal", sort: order, title: null, axis: { labelLimit: window.innerWidth < 600 ? 110 : 240, labelColor: "var(--ink)", grid: true, ticks: false, domain: false } };
    const x = { field: "value", type: "quantitative", title, scale: { zero: false, padding: 12 }, axis: { format: ".4~p", tickCount: 6 } };
    return {
      caption: `${title} of each class: ${first} is the circle, ${second} the diamond; means over runs.`
        + (rows.length > drawn.length ? ` Drawn are the ${drawn.length} of ${rows.length} classes in which they differ most.` : ""),
      header: ["class", "documents", first, second, "difference"],
      rows: rows.map((row) => [row.class, [plain(row.support), row.support], [percent(row.one), row.one], [percent(row.two), row.two],
        [row.gap == null ? "–" : points(row.gap), row.gap]]),
      spec: {
        height: 24 * drawn.length,
        layer: [
          { data: { values: drawn.filter((row) => row.gap != null) }, mark: { type: "rule", color: "var(--soft)", strokeWidth: 2 },
            encoding: { y, x: { ...x, field: "one" }, x2: { field: "two" } } },
          { data: { values: long }, mark: { type: "point", filled: true, size: 100, opacity: 1 }, encoding: { y, x,
            color: { field: "side", legend: null, scale: { domain: ["one", "two"], range: ["var(--more)", "var(--less)"] } },
            shape: { field: "side", legend: null, scale: { domain: ["one", "two"], range: ["circle", "diamond"] } },
            tooltip: [{ field: "class" }, { field: "group" }, { field: "value", title, type: "quantitative", format: ".1%" }] } },
        ],
      },
    };
  };

  function confusion() {
    const place = document.getElementById("confusion");
    if (!place) return;
    const set = theSet();
    if (set.multilabel) {
      place.replaceChildren(make("p", { class: "missing" }, "Documents have several labels: there is no confusion matrix of them."));
      return;
    }
    const found = sides(set.groups);
    const size = set.classes.length;
    const support = (found[0] ?? found[1])?.support ?? [];
    const kept = [...set.classes.keys()].sort((a, b) => support[b] - support[a]).slice(0, MOST_CLASSES).sort((a, b) => a - b);
    // rows are shares of the true class
    const shares = found.map((one) => {
      if (!one) return null;
      const matrix = set.classes.map(() => new Array(size).fill(0));
      for (const [i, j, count] of one.confusion) matrix[i][j] = count / one.support[i];
      return matrix;
    });
    const matrix = (title, value, tint, text) => make("div", {},
      make("h3", {}, title),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, make("table", { class: "matrix" },
        make("thead", {}, make("tr", {}, make("td", {}, ""), ...kept.map((j) => make("th", { scope: "col", title: set.classes[j] }, make("span", {}, set.classes[j]))))),
        make("tbody", {}, ...kept.map((i) => make("tr", {}, make("th", { scope: "row", title: set.classes[i] }, set.classes[i]), ...kept.map((j) => {
          const share = value(i, j);
          const cell = make("td", { class: `${i === j ? "diagonal" : ""} ${tint(share) > 0.85 ? "strong" : tint(share) > 0.7 ? "middling" : ""}`,
            title: `${set.classes[i]} taken for ${set.classes[j]}: ${text(share, true)}` }, Math.abs(share) < 0.0005 ? "" : text(share));
          cell.style.setProperty("--share", `${(100 * Math.min(1, Math.abs(tint(share)))).toFixed(1)}%`);
          cell.style.setProperty("--tint", share < 0 ? "var(--less)" : "var(--more)");
          return cell;
        })))))));
    const whole = (share) => (100 * share < 0.5 ? "<1" : (100 * share).toFixed(0));
    const single = shares.map((one, side) => (one && !(side && names.length < 2)
      ? matrix(names[state.pair[side]], (i, j) => one[i][j], (share) => share, whole)
      : null));
    const both = shares[0] && shares[1] && names.length > 1;
    const widest = both ? Math.max(...kept.flatMap((i) => kept.map((j) => Math.abs(shares[0][i][j] - shares[1][i][j])))) || 1 : 1;
    place.replaceChildren(
      make("h3", {}, "Confusion: % of the true class (row) that is taken for each (column)"),
      ...(kept.length < size ? [make("p", { class: "note" }, `The ${kept.length} largest of ${size} classes.`)] : []),
      make("div", { class: kept.length > 12 ? null : "beside" }, ...single.filter(Boolean),
        both ? matrix(`${names[state.pair[0]]} − ${names[state.pair[1]]}, points`, (i, j) => shares[0][i][j] - shares[1][i][j],
          (share) => (0.6 * share) / widest, points) : null));
  }

  builders.calibration = () => {
    const all = data.calibration.groups.flatMap((one) => one.bins.map(([sure, right, share]) => (
      { group: names[one.group], place: one.group, sure, right, share })));
    const values = all.filter((one) => state.drawn.has(one.place));
    const x = { field: "sure", type: "quantitative", title: "confidence", scale: { domain: [0, 1] }, axis: { format: ".0%", tickCount: 5 } };
    const y = { field: "right", type: "quantitative", title: "right", scale: { domain: [0, 1] }, axis: { format: ".0%", tickCount: 5 } };
    return {
      caption: "Reliability: how often answers of a confidence are right, in 15 bins; the larger the mark the more documents. On the dashed line a model is "
        + "as often right as it says.",
      header: ["group", "confidence", "right", "of the documents"],
      rows: all.map((one) => [one.group, [percent(one.sure), one.sure], [percent(one.right), one.right], [percent(one.share), one.share]]),
      spec: {
        height: 340,
        layer: [
          { data: { values: [{ sure: 0, right: 0 }, { sure: 1, right: 1 }] }, mark: { type: "line", color: "var(--soft)", strokeDash: [4, 4] }, encoding: { x, y } },
          { data: { values }, mark: { type: "line", strokeWidth: 1.5 }, encoding: { x, y, color: byGroup.color, strokeDash: byGroup.strokeDash } },
          { data: { values }, mark: { type: "point", filled: true, opacity: 0.9 }, encoding: { x, y, color: byGroup.color, shape: byGroup.shape,
            size: { field: "share", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [20, 500] } },
            tooltip: [{ field: "group" }, ...["sure", "right", "share"].map((field) => ({ field, type: "quantitative", format: ".1%",
              title: { sure: "confidence", share: "of the documents" }[field] }))] } },
        ],
      },
    };
  };

  function errors() {
    document.getElementById("errors")?.replaceChildren(table("Expected calibration error, means over runs", ["group", "error", "sd"],
      data.calibration.groups.map(({ group, error }) => [names[group], ...["mean", "spread"].map((part) => (
        [error?.[part] == null ? "–" : error[part].toFixed(4), error?.[part]]))])));
  }

  builders.coverage = () => {
    const groups = data.tables.groups;
    const number = (one, part, of) => one.numbers[`${data.split} ${part} ${of}`] ?? null;
    const values = groups.filter((one) => state.drawn.has(one.group)).map((one) => (
      { group: names[one.group], known: number(one, "known", "tokens"), vector: number(one, "with_vector", "tokens") }));
    const x = (field) => ({ field, type: "quantitative", title: `share of the tokens of the ${data.split} split`, scale: { domain: [0, 1] }, axis: { format: ".0%", tickCount: 5 } });
    const y = { field: "group", type: "nominal", sort: values.map((one) => one.group), axis: null, scale: { paddingInner: 0.6, paddingOuter: 0.4 } };
    const tooltip = [{ field: "group" }, { field: "known", title: "have a row", type: "quantitative", format: ".1%" }, { field: "vector", title: "have a pretrained vector", type: "quantitative", format: ".1%" }];
    const both = (one, part) => ["types", "tokens"].map((of) => { const value = number(one, part, of); return [percent(value), value]; });
    const of = (one, name) => [plain(one.numbers[name]), one.numbers[name]];
    return {
      caption: `Coverage: tokens of the ${data.split} split that have a row in the table (pale), and of these those with a pretrained vector (full). `
        + "The table below adds distinct tokens, and how far rows moved in training.",
      header: ["group", "runs", "row: distinct", "row: all", "vector: distinct", "vector: all", "rows", "moved", "median distance", "median cosine", "length before", "after"],
      rows: groups.map((one) => [names[one.group], [`${one.runs}`, one.runs], ...both(one, "known"), ...both(one, "with_vector"),
        ...["rows", "moved", "distance", "cosine", "length_before", "length_after"].map((name) => of(one, name))]),
      spec: {
        data: { values }, height: 40 * values.length,
        layer: [
          { mark: { type: "bar", opacity: 0.35 }, encoding: { y, x: x("known"), color: byGroup.color, tooltip } },
          { mark: { type: "bar" }, encoding: { y, x: x("vector"), color: byGroup.color, tooltip } },
          { mark: { type: "text", ...LABELS }, encoding: { y, x: { value: 0 }, text: { field: "group" } } },
        ],
      },
    };
  };

  builders.drift = () => {
    const name = (low, high) => (low >= high ? `${low}` : `${low}–${high}`);
    const all = data.tables.groups.flatMap((one) => one.bins.map(([low, high, lower, middle, upper]) => (
      { group: names[one.group], place: one.group, low, seen: name(low, high), lower, middle, upper })));
    const values = all.filter((one) => state.drawn.has(one.place));
    const order = [...new Map([...all].sort((a, b) => a.low - b.low).map((one) => [one.low, one.seen])).values()];
    const x = { field: "seen", type: "ordinal", sort: order, title: "times a token occurs in training", axis: { labelAngle: -40 }, scale: { padding: 0.2 } };
    const y = { type: "quantitative", title: "distance" };
    return {
      caption: "Drift: how far a row moved in training, by how often its token occurs; the median, and a band that holds the middle half; means over runs.",
      header: ["group", "times", "lower quartile", "median", "upper quartile"],
      rows: all.map((one) => [one.group, [one.seen, one.low], ...["lower", "middle", "upper"].map((field) => [plain(one[field]), one[field]])]),
      spec: {
        data: { values }, height: 280, encoding: { x, color: byGroup.color },
        layer: [
          { mark: { type: "area", opacity: 0.14 }, encoding: { y: { ...y, field: "lower" }, y2: { field: "upper" } } },
          { mark: { type: "line", strokeWidth: 2 }, encoding: { y: { ...y, field: "middle" }, strokeDash: byGroup.strokeDash } },
          { mark: { type: "point", filled: true, opacity: 1, size: 45 }, encoding: { y: { ...y, field: "middle" }, shape: byGroup.shape,
            tooltip: [{ field: "group" }, { field: "seen", title: "times" }, ...["middle", "lower", "upper"].map((field) => ({ field, type: "quantitative", format: ".3~g", title: { middle: "median" }[field] }))] } },
        ],
      },
    };
  };

  function words() {
    const place = document.getElementById("words");
    if (!place) return;
    const several = state.pair[0] === state.pair[1] ? state.pair.slice(0, 1) : state.pair;
    place.replaceChildren(...several.map((group) => {
      const one = data.tables.groups.find((entry) => entry.group === group);
      if (!one) return make("p", { class: "missing" }, `${names[group]}: no embedding.json.`);
      if (!one.words.length) return make("p", { class: "note" }, `${names[group]}: no row moved.`);
      return table(names[group], ["word", "times", "distance", "runs"], one.words.map((word) => (
        [word.word, [plain(word.count), word.count], [plain(word.distance), word.distance], [`${word.runs} of ${one.runs}`, word.runs]])));
    }));
  }

  // Documents

  function documents() {
    const list = document.getElementById("list");
    if (!list) return;
    const value = (id) => document.getElementById(id).value;
    const wanted = value("text").trim().toLocaleLowerCase();
    const [one, two] = state.pair;
    const gap = (item) => (item.right[one] == null || item.right[two] == null ? 0 : item.right[one] - item.right[two]);
    const found = data.documents.items
      .filter((item) => gap(item) !== 0 && (!value("label") || item.label === value("label")))
      .filter((item) => !value("side") || gap(item) * Number(value("side")) > 0)
      .filter((item) => !wanted || (item.text ?? "").toLocaleLowerCase().includes(wanted))
      .sort((a, b) => Math.abs(gap(b)) - Math.abs(gap(a)));
    const said = (item, group) => make("div", {}, make("dt", {}, names[group]),
      make("dd", {}, `${item.said[group] || "nothing"}, ${percent(item.right[group], 0)} right`));
    list.replaceChildren(...found.slice(0, state.listed).map((item) => make("li", {},
      make("blockquote", { dir: "auto" }, item.text == null ? `Row ${item.row}, whose text cannot be read` : item.text + (item.is_cut ? "…" : "")),
      make("dl", {}, make("div", {}, make("dt", {}, "true class"), make("dd", {}, item.label || "none")), said(item, one), said(item, two),
        make("div", {}, make("dt", {}, "row"), make("dd", {}, `${item.row}`))))));
    const few = Math.min(state.listed, found.length);
    document.getElementById("count").textContent =
      `${found.length} of ${data.documents.items.length} documents tell ${names[one]} from ${names[two]}`
      + (few < found.length ? `; the first ${few} are shown.` : ".");
    document.getElementById("more").hidden = few === found.length;
  }

  // Controls

  function legends() {
    for (const place of document.querySelectorAll("[data-legend]")) {
      place.replaceChildren(...names.map((name, group) => {
        const box = make("input", { type: "checkbox", checked: state.drawn.has(group), "data-group": group });
        const key = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        key.setAttribute("class", "key");
        key.setAttribute("viewBox", "0 0 34 14");
        key.setAttribute("aria-hidden", "true");
        const part = (d, style) => {
          const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
          path.setAttribute("d", d);
          path.setAttribute("style", style);
          key.append(path);
        };
        part("M0 7h34", `stroke:${colour(group)};stroke-width:2;stroke-dasharray:${dash(group).join(" ")}`);
        part(SHAPES[shape(group)], `fill:${colour(group)}`);
        return make("label", {}, box, key, name);
      }));
    }
  }

  const drawn = ["cost", "curves", "calibration", "coverage", "drift"];
  const ofPair = () => { draw("by-class"); confusion(); words(); state.listed = MOST_LISTED; documents(); };
  document.addEventListener("change", (event) => {
    const { target } = event;
    if (target.dataset.group !== undefined) {
      const group = Number(target.dataset.group);
      if (target.checked) state.drawn.add(group); else state.drawn.delete(group);
      for (const box of document.querySelectorAll(`[data-group="${group}"]`)) box.checked = target.checked;
      drawn.forEach(draw);
    } else if (target.dataset.side !== undefined) {
      state.pair[Number(target.dataset.side)] = Number(target.value);
      pickers();
      ofPair();
    } else if (target.id === "axis") draw("cost");
    else if (target.id === "figure") draw("curves");
    else if (target.id === "set" || target.id === "by-class") { draw("by-class"); confusion(); }
  });
  function pickers() {
    for (const select of document.querySelectorAll("[data-side]")) {
      if (!select.options.length) select.append(...names.map((name, group) => make("option", { value: group }, name)));
      select.value = state.pair[Number(select.dataset.side)];
    }
  }
  const filter = document.getElementById("filter");
  if (filter) {
    const labels = [...new Set(data.documents.items.map((item) => item.label))].sort((a, b) => a.localeCompare(b));
    document.getElementById("label").append(...labels.map((label) => make("option", { value: label }, label || "none")));
    filter.addEventListener("submit", (event) => event.preventDefault());
    // each key as it comes, and choices however they are made
    for (const event of ["input", "change"]) filter.addEventListener(event, () => { state.listed = MOST_LISTED; documents(); });
    document.getElementById("more").addEventListener("click", () => { state.listed += 4 * MOST_LISTED; documents(); });
  }
  if (names.length < 2) for (const place of document.querySelectorAll(".pair")) place.hidden = true;

  document.getElementById("folders").append(table("Each run", ["group", "run", metric, "training, s", "MiB", "folder"], data.runs.map((run) => [
    names[run.group], run.name, [shown(run.value, data.share), run.value], [plain(run["seconds/fit"]), run["seconds/fit"]],
    [plain(run["memory/peak_bytes"] == null ? null : run["memory/peak_bytes"] / 2 ** 20), run["memory/peak_bytes"]], run.folder]), 2));
  pickers();
  legends();
  confusion();
  errors();
  words();
  documents();
  // the page says when all is drawn: whoever prints or tests it can wait for that
  Promise.all(["differences", "by-class", ...drawn].map(draw)).then(() => { document.documentElement.dataset.drawn = "yes"; });
})();

// The dashboard in a real browser. Arguments: the admin address, a folder for screenshots. Prints JSON.
import puppeteer from "puppeteer-core";

const [admin, out] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-proxy-server"],
});
const seen = { pages: {}, errors: [], requests: [] };
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => { if (message.type() === "error") seen.errors.push(message.text()); });
  page.on("request", (request) => seen.requests.push(request.url()));

  // Without JavaScript: everything but the live part.
  await page.setJavaScriptEnabled(false);
  const table = (selector) => page.$$eval(`${selector} tbody tr`, (rows) => rows.map((row) => [...row.children].map((c) => c.innerText.trim())));
  await page.goto(admin + "/", { waitUntil: "load" });
  const text = (selector) => page.$eval(selector, (e) => e.innerText.trim());
  seen.overview = {
    calls: await text("#calls"), charged: await text("#charged"), saved: await text("#saved"), ratio: await text("#hit-ratio"),
    quota: await table("#quota"), routes: await table("#routes"), clients: await table("#clients"), runs: await table("#runs"),
    averages: await table("#averages"), last: await table("#last"), charts: (await page.$$("svg polyline, svg polygon")).length,
  };
  await page.goto(admin + "/list/route?sort=calls", { waitUntil: "load" });
  seen.byCalls = await table("#lines");
  const links = await page.$$eval("#lines tbody a", (all) => all.map((a) => a.getAttribute("href")));
  await page.goto(admin + links[0], { waitUntil: "load" });
  seen.route = { title: await text("h1"), calls: await text("#calls"), clients: await table("#by-client") };
  await page.goto(admin + "/", { waitUntil: "load" });
  await page.goto(admin + (await page.$eval("#runs tbody th a", (a) => a.getAttribute("href"))), { waitUntil: "load" });
  seen.run = { title: await text("h1"), calls: await text("#calls"), routes: await table("#by-route") };

  // Light and dark, wide and narrow.
  await page.setJavaScriptEnabled(true);
  for (const scheme of ["light", "dark"]) {
    for (const [size, width, height] of [["wide", 1280, 900], ["narrow", 390, 844]]) {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.setViewport({ width, height });
      await page.goto(admin + "/", { waitUntil: "load" });
      seen.pages[`${scheme}-${size}`] = await page.evaluate(() => ({
        overflow: document.documentElement.scrollWidth - window.innerWidth,
        background: getComputedStyle(document.body).backgroundColor,
      }));
      await page.screenshot({ path: `${out}/overview-${scheme}-${size}.png`, fullPage: true });
    }
  }
  await page.goto(admin + links[0], { waitUntil: "load" });
  await page.screenshot({ path: `${out}/route-dark-narrow.png`, fullPage: true });

  // Live: what is called from now on shows by itself, and only what is wanted.
  await page.goto(admin + "/", { waitUntil: "load" });
  await page.waitForFunction(() => document.querySelector("#live").innerText === "live");
  console.log("watching");
  await page.waitForFunction(() => document.querySelector("#last tbody").innerText.includes("a-late-client"), { timeout: 20000 });
  seen.live = (await table("#last"))[0];
  await page.type("#filter input[name=client]", "nobody\n");
  await page.$eval("#filter input[name=client]", (e) => e.dispatchEvent(new Event("change", { bubbles: true })));
  await page.waitForFunction(() => document.querySelectorAll("#last tbody tr").length === 0, { timeout: 20000 });
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
}

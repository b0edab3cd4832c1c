"use strict";
// Shows /openapi.json with Swagger UI. It sends no requests to the API: clients use the commands of the contract.

const dark = matchMedia("(prefers-color-scheme: dark)");
const followColours = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followColours);
followColours();

// The commands in the contract are for this host, not for the one in the settings. Events may have another port than
// this page: then the first server of the contract names it.
const LOCAL = /http:\/\/localhost:\d+/g;
const withAddress = (response) => {
  if (!response.url.endsWith("/openapi.json") || !response.ok) return response;
  const [events] = JSON.parse(response.text).servers;
  const address = events.url === "/" ? location.origin : events.url.replace("{host}", location.hostname);
  const isSafe = /^https?:\/\/[\w.:[\]-]+$/.test(address); // a shell gives it no meaning
  if (isSafe) response.text = response.text.replace(LOCAL, address);
  return response;
};

// Swagger UI gives its lists no names, and screen readers need them.
const contract = document.getElementById("contract");
const nameLists = () => {
  for (const list of contract.querySelectorAll("select:not([aria-label])")) {
    const isMediaType = list.classList.contains("content-type");
    const isExample = list.classList.contains("examples-select-element");
    list.setAttribute("aria-label", isMediaType ? "Media type" : isExample ? "Example" : "Value");
  }
};
new MutationObserver(nameLists).observe(contract, { childList: true, subtree: true });

SwaggerUIBundle({
  url: "/openapi.json",
  domNode: contract,
  deepLinking: true,
  defaultModelsExpandDepth: 1,
  docExpansion: "list",
  responseInterceptor: withAddress,
  syntaxHighlight: { theme: "obsidian" },
  supportedSubmitMethods: [],
  validatorUrl: null,
});

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#document",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  // A key stays in this tab's memory: whoever sits down here next has to bring one.
  persistAuthorization: false,
  // The validator would be another origin's.
  validatorUrl: null,
});

// Where the browser kept the page to go back to, it kept the key, too.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());

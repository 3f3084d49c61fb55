using System.Net;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;

namespace Purse.Load;

/// <summary>What HTTP alone costs here: the same Kestrel, an endpoint that parses the transfer and answers it. No ledger, nothing kept.</summary>
public static class EchoServer
{
    /// <summary>Runs until the process ends; says where it listens.</summary>
    public static async Task RunAsync(Action<Uri> ready)
    {
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.WebHost.UseKestrelCore();
        builder.WebHost.ConfigureKestrel(kestrel =>
        {
            kestrel.AddServerHeader = false;
            kestrel.Listen(IPAddress.Loopback, 0);
        });
        builder.Services.AddRoutingCore();
        await using WebApplication app = builder.Build();
        app.UseRouting();
        app.MapPost("/v1/wallet/balance_transfer", (RequestDelegate)EchoAsync);
        await app.StartAsync();
        ready(new Uri(app.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.First()));
        await app.WaitForShutdownAsync();
    }

    static async Task EchoAsync(HttpContext http)
    {
        Server.BalanceTransferBody body = (await JsonSerializer.DeserializeAsync(http.Request.Body, Server.BodyJson.Default.BalanceTransferBody))!;
        http.Response.ContentType = "application/json";
        await using Utf8JsonWriter json = new(http.Response.BodyWriter);
        JsonSerializer.Serialize(json, body, Server.BodyJson.Default.BalanceTransferBody);
    }
}
